"""LoRA: PEFT folders in and out, what is resident, and the routed linear."""
