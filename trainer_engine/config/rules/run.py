"""Rules of the length of a run and its learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterator

from trainer_engine.config.addresses import HOST
from trainer_engine.config.options.registry import Rule, Values
from trainer_engine.contract.errors import Problem

HERE = ("127.0.0.1", "localhost", "::1")


def run_has_a_length(values: Values) -> Iterator[Problem]:
    steps, epochs = values["max_train_steps"], values["num_train_epochs"]
    if not steps and not epochs:
        message = "The run has no length: max_train_steps and num_train_epochs are both 0."
        yield Problem.error("max_train_steps", "no_length", message, got=0, expected="one of the two above 0")
    if steps and epochs:
        message = f"max_train_steps={steps} and num_train_epochs={epochs} contradict each other."
        hint = "set num_train_epochs to 0 to count steps, or max_train_steps to 0 to count epochs"
        yield Problem.error("num_train_epochs", "two_lengths", message, got=epochs, expected="exactly one of the two above 0", hint=hint)


def warmup_fits(values: Values) -> Iterator[Problem]:
    warmup, total = values["lr_warmup_steps"], values["max_train_steps"]
    if total and warmup > total:
        message = f"{warmup} warm-up steps in a run of {total}: the peak learning rate is never reached."
        yield Problem.note("lr_warmup_steps", "longer_than_run", message, got=warmup, hint=f"use {total // 10} or less")


def floor_is_below_peak(values: Values) -> Iterator[Problem]:
    floor, peak = values["lr_end"], values["learning_rate"]
    if values["lr_scheduler"] == "polynomial" and floor >= peak:
        message = f"The polynomial schedule decays from learning_rate={peak:g} to lr_end={floor:g}, which is not below it."
        yield Problem.error("lr_end", "not_below_peak", message, got=floor, expected=f"less than {peak:g}")


def machines_can_meet(values: Values) -> Iterator[Problem]:
    count, rank, host = values["num_machines"], values["machine_rank"], values["main_process_ip"]
    if rank >= count:
        message = f"machine_rank={rank} is no machine of {count}, which are counted from 0."
        yield Problem.error("machine_rank", "out_of_range", message, got=rank, expected=f"less than {count}")
    if not HOST.fullmatch(host):
        message = "main_process_ip is not the name or the address of a machine."
        yield Problem.error("main_process_ip", "not_an_address", message, got=host, expected="an address such as 10.0.0.1")
    elif count > 1 and rank > 0 and host in HERE:
        message = f"main_process_ip={host} is this machine itself, and machine {rank} connects to machine 0."
        yield Problem.error("main_process_ip", "not_machine_0", message, got=host, expected="the address of machine 0")


RULES: tuple[Rule, ...] = (
    run_has_a_length,
    warmup_fits,
    floor_is_below_peak,
    machines_can_meet,
)
