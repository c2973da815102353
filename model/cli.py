"""The `model` command: assembles the commands of model/commands/. Owns no option and does no work.

Exit status 0: done, or done before. 1: failed, with one line `error[code]: what is wrong` on stderr.
2: wrong usage. 130: interrupted.
"""

import typer

from model.commands import benchmark
from model.commands.chat import chat
from model.commands.convert import convert
from model.commands.doctor import doctor
from model.commands.evaluate import evaluate

app = typer.Typer(name="model", no_args_is_help=True)


@app.callback()
def main() -> None:
    """Prepare models for the engine, talk to them and measure them."""


for command in (convert, chat):
    app.command()(command)
app.add_typer(benchmark.app)
for command in (evaluate, doctor):
    app.command()(command)

if __name__ == "__main__":
    app()
