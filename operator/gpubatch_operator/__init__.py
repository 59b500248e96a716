"""The operator: watches `GPUBatchJob`s, orders them, admits one at a time per GPU slot and keeps their status true."""
