"""The demo's source: the SQLite database of a shop, its recipe, and what has to arrive of it in DataHub."""

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

PLUGIN: Final = "sqlalchemy"
SECRET: Final = "SHOP_DB_PASSWORD"  # noqa: S105 - its name

# The foreign keys have names since the CLI's source trips over one without; the view names the schema since
# the CLI would else look for its tables elsewhere.
_SQL: Final = """
CREATE TABLE customers (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    email TEXT
);
CREATE TABLE orders (
    id INTEGER PRIMARY KEY,
    customer_id INTEGER NOT NULL,
    ordered_at TIMESTAMP NOT NULL,
    CONSTRAINT placed_by FOREIGN KEY (customer_id) REFERENCES customers (id)
);
CREATE TABLE order_items (
    order_id INTEGER NOT NULL,
    product TEXT NOT NULL,
    quantity INTEGER NOT NULL,
    price NUMERIC(10, 2) NOT NULL,
    PRIMARY KEY (order_id, product),
    CONSTRAINT part_of FOREIGN KEY (order_id) REFERENCES orders (id)
);
CREATE VIEW revenue AS
    SELECT customer.id AS customer_id, customer.name, SUM(item.quantity * item.price) AS revenue
    FROM main.customers AS customer
    JOIN main.orders AS placed ON placed.customer_id = customer.id
    JOIN main.order_items AS item ON item.order_id = placed.id
    GROUP BY customer.id, customer.name;
INSERT INTO customers VALUES (1, 'Ada', 'ada@example.org'), (2, 'Grace', NULL);
INSERT INTO orders VALUES (1, 1, '2026-01-05 09:30:00'), (2, 2, '2026-01-06 17:45:00');
INSERT INTO order_items VALUES (1, 'tea', 2, 4.50), (1, 'cup', 1, 7.00), (2, 'tea', 1, 4.50);
"""


def make_shop(path: Path) -> None:
    """Write the database. Raises sqlite3.Error and OSError where it can't be."""
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(_SQL)


def columns_of(path: Path) -> dict[str, list[str]]:
    """The columns of each table and view, as the database itself has them, by the name DataHub gives it."""
    with closing(sqlite3.connect(path)) as db:
        kinds = "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') ORDER BY name"
        tables = [name for (name,) in db.execute(kinds)]
        columns = "SELECT name FROM pragma_table_info(?) ORDER BY cid"
        return {f"main.{table}": [name for (name,) in db.execute(columns, (table,))] for table in tables}


def recipe_of(path: Path) -> str:
    """The recipe, as DataHub's page has them: JSON, secrets as references.

    SQLite has no passwords and ignores what it does not know in an address: ours is there for the show.
    """
    uri = f"sqlite:///file:{path}?mode=ro&password=${{{SECRET}}}&uri=true"
    return json.dumps({"source": {"type": PLUGIN, "config": {"connect_uri": uri, "platform": "sqlite"}}})


def arrived_columns(datasets: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Columns by dataset name, from those by URN, in the order of the names."""
    return {_name(urn): datasets[urn] for urn in sorted(datasets)}


def arrived_upstreams(aspects: Mapping[str, Mapping[str, Any] | None]) -> dict[str, list[str]]:
    """What each dataset is made from, from the `upstreamLineage` aspects by URN."""
    return {
        _name(urn): sorted(_name(upstream["dataset"]) for upstream in (aspect or {}).get("upstreams", ()))
        for urn, aspect in aspects.items()
    }


def _name(urn: str) -> str:
    """The name in `urn:li:dataset:(urn:li:dataPlatform:<platform>,<name>,<fabric>)`."""
    return urn.split(",")[1]
