"""The shop's own tables, in the same database as Forebay's. `python -m shop.tables URL` creates them."""

import sys

import sqlalchemy as sa

metadata = sa.MetaData()

orders = sa.Table(
    "shop_orders",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("customer", sa.String(200), nullable=False),
    sa.Column("cents", sa.Integer, sa.CheckConstraint("cents > 0", name="cents_positive"), nullable=False),
)

clicks = sa.Table(
    "shop_clicks",
    metadata,
    sa.Column("page", sa.String(500), primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
)

if __name__ == "__main__":
    metadata.create_all(sa.create_engine(sys.argv[1]))
