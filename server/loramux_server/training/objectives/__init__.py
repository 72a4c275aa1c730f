"""What a job learns from: the losses, and the teacher of a distillation."""
