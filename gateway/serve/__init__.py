"""What the gateway serves to others over the network. Each part is optional and needs an extra."""
