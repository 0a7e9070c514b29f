"""What the chain costs: CPU per token of each hop, added delays, streams held. See README.md."""
