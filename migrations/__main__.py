"""Write the migration from the last revision to the models: `python -m migrations "add a column"`.

What Alembic writes is a draft: read it, name what has no name, and set
app.keys.database.HEAD_REVISION to it.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from alembic import command

from app.keys.database import HEAD_REVISION, embedded_url, migrating, open_engine, upgrade


def main() -> None:
    """Compare the models with a database that has every migration, and write what differs."""
    parser = argparse.ArgumentParser(prog="python -m migrations", description=__doc__)
    parser.add_argument("message", help="what it does, in the imperative")
    arguments = parser.parse_args()
    with TemporaryDirectory() as directory:
        engine = open_engine(embedded_url(Path(directory)))
        upgrade(engine)
        with migrating(engine) as config:
            command.revision(
                config,
                arguments.message,
                autogenerate=True,
                rev_id=f"{int(HEAD_REVISION) + 1:04}",
            )
        engine.dispose()


if __name__ == "__main__":
    main()
