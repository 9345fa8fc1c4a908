"""The PyTorch training core: towers, mirror, decoder, losses, training, checkpoints."""
