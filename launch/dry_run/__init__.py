"""What a GRPO run will take, before it is started: memory, FLOPs, step time, and what more workers would change."""
