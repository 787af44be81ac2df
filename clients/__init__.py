"""The Flower ClientApp: answers for the partitions a node hosts."""
