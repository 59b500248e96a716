"""`gpubatch submit FILE`."""

from __future__ import annotations

from typing import Any

import click

from gpubatch_cli.options import Duration, connect, namespace_of, place


@click.command()
@place
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@click.option("--model", help="Hub id or path of the model.")
@click.option("--output", "target", metavar="URL", help="Where the answers go: s3://BUCKET/KEY, gs://, az://.")
@click.option("--name", help="Of the job. Default: the file's, with a few letters that make it unique.")
@click.option("--served-model-name", metavar="NAME", help="What the requests call the model. Default: what they do.")
@click.option("--input", "upload_url", metavar="URL", help="Where the file is uploaded to. Default: beside the output, "
              "as OUTPUT.input.jsonl.")  # fmt: skip
@click.option("--errors", metavar="URL", help="Where failed requests go. Default: OUTPUT.errors.jsonl.")
@click.option("--endpoint", metavar="URL", help="Of the store, as the cluster reaches it. Default: the cloud's own.")
@click.option("--upload-endpoint", metavar="URL", help="The same, as this machine reaches it. Default: --endpoint.")
@click.option("--region", help="Of s3:// locations.")
@click.option("--secret", metavar="NAME", help="Secret with the store's keys, in the job's namespace.")
@click.option("--priority", type=click.IntRange(-1000, 1000), metavar="N", help="-1 low, 0 normal, 1 high.")
@click.option("--gpus", type=click.IntRange(1, 64), metavar="N", help="GPUs of one node. Default: 1.")
@click.option("--node-selector", metavar="KEY=VALUE", multiple=True, help="Label that the node must have; repeatable.")
@click.option("--engine-image", metavar="IMAGE", help="Default: the operator's setting.")
@click.option("--engine-arg", metavar="ARG", multiple=True, help="For the engine, as --engine-arg=--max-model-len "
              "--engine-arg=4096.")  # fmt: skip
@click.option("--completion-window", type=Duration(), metavar="TIME", help="Fail if it isn't done so long after its "
              "creation: 90m, 24h; what was answered is kept.")  # fmt: skip
@click.option("--webhook", metavar="URL", multiple=True, help="Who is told about the job; repeatable.")
@click.option("--webhook-secret", metavar="NAME", help="Secret that signs what they are told.")
@click.option("--skip-invalid", is_flag=True, help="Submit even if some lines are invalid: they go to the error file.")
@click.option("--force", is_flag=True, help="Take over fields that another tool manages.")
@click.option("--dry-run", type=click.Choice(["none", "client", "server"]), default="none", show_default=True,
              help="client: only print it. server: let the cluster judge it, and change nothing.")  # fmt: skip
@click.option("-o", "form", type=click.Choice(["yaml", "json", "name"]), help="Print the job as that.")
@click.option("--wait", "wait_for", is_flag=True, help="Then wait for its end, as `wait` does.")
@click.pass_context
def submit(ctx: click.Context, /, file: str, dry_run: str, form: str | None, wait_for: bool, **options: Any) -> int:
    """Submit a job: a file of requests, or a manifest.

    \b
    gpubatch submit chats.jsonl --model meta-llama/Llama-3.1-8B-Instruct --output s3://batches/chats.out.jsonl
    gpubatch submit s3://batches/chats.jsonl --model ... --output ...     the requests are there already
    gpubatch submit job.yaml                                              a manifest, or several; - reads stdin

    FILE.jsonl (also .gz, .zst) is checked first, line by line, then the cluster is asked whether it would take the
    job, then the file is uploaded and the job created by server-side apply. What has no option here stands in a
    manifest: `--dry-run=client -o yaml` prints one to begin with.
    """
    from gpubatch_cli.submission import Submission, Wishes

    given = {name: value for name, value in options.items() if value not in (None, (), False)}
    wishes = Wishes(**given)
    submission = Submission(lambda: connect(ctx), namespace_of(ctx), wishes, dry_run, form)
    return submission.run(file, wait_for)
