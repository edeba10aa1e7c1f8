"""Hard-attention models that TNet is compared with."""
