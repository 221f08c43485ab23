"""What pretrained encoders are good for: classification heads, probes and fine-tuning."""
