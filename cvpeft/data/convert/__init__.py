"""Labels as tools write them -> clean COCO json files: import, merge, repair. Nothing of a source is ever changed."""
