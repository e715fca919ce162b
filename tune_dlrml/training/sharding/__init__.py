"""A base model whose weights are divided over the ranks of a group (FSDP2), and stay so from trial to trial."""
