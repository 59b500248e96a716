"""Hugging Face's Trainer on a tiny model. Its own callback for Kubeflow tells GPUBatch how far it is."""

from __future__ import annotations

import os
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

STEPS = int(os.environ.get("STEPS", "80"))
PAUSE = float(os.environ.get("PAUSE", "0"))  # seconds a step: the callback reports every five seconds, no oftener


class Sentences(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Counting upwards, from anywhere: something that can be learned."""

    def __len__(self) -> int:
        return STEPS * 4

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = (torch.arange(32) + index * 7) % 128
        return {"input_ids": ids, "labels": ids}


class Slowly(TrainerCallback):
    """Takes its time, as a larger model would."""

    def on_step_end(self, *_: object, **__: object) -> None:
        time.sleep(PAUSE)


model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        use_cache=False,
    )
)
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir="/tmp/out",
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=5,
        save_strategy="no",
        report_to="kubeflow",
        use_cpu=True,
        disable_tqdm=True,
    ),
    train_dataset=Sentences(),
    callbacks=[Slowly()],
)
print(trainer.train().metrics)
