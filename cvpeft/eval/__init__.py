"""What a detector is worth: COCO numbers, and where it fails."""
