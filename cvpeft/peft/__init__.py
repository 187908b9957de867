"""Any nn.Module -> the same module, adapted. Needs torch and safetensors, not timm or torchvision."""
