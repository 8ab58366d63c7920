"""The network: heads, blocks, their declarations and sharding rules, tally and saved models."""
