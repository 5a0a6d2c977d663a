"""Dagster's storage in MySQL, each call of which ends: with an answer, or with an error within a few minutes.

`dagster-mysql` connects for each call and sets no limit but the driver's own for connecting. Its URL can't set one for
answers: SQLAlchemy hands it to the driver as text, and the driver insists on a number. A server that vanishes in the
middle of a call (power, network, a frozen machine) would so hold a thread of the daemon for ever.
"""

from typing import Any, Self

from dagster._serdes import ConfigurableClassData
from dagster_mysql.storage import DagsterMySQLStorage
from dagster_mysql.utils import mysql_url_from_config
from mysql.connector import Error
from mysql.connector.abstracts import MySQLConnectionAbstract
from sqlalchemy import Engine, event
from sqlalchemy.exc import InvalidatePoolError

_LIMITS_S = {"connection_timeout": 5, "read_timeout": 60, "write_timeout": 60}
"""The driver's own names; a URL may set others: ``?read_timeout=3600``."""


class MySQLStorage(DagsterMySQLStorage):
    """The storage of `dagster-mysql` with limits, and with a ping before a kept connection is used again.

    Args:
        mysql_url: As Dagster takes it; limits in its query win.
        inst_data: Where Dagster found the class.
    """

    def __init__(self, mysql_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        # For all engines of the process, since those of Dagster connect while they are being made.
        for name, listener in (("do_connect", _limit), ("checkout", _ping)):
            if not event.contains(Engine, name, listener):
                event.listen(Engine, name, listener)
        super().__init__(mysql_url, inst_data)

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Self:
        """Make it from what stands in dagster.yaml."""
        return cls(mysql_url_from_config(config_value), inst_data)


def _limit(dialect: Any, _record: Any, _args: Any, options: dict[str, Any]) -> None:
    if dialect.driver == "mysqlconnector":
        options.update({name: int(options.get(name, limit)) for name, limit in _LIMITS_S.items()})


def _ping(connection: Any, _record: Any, _proxy: Any) -> None:
    # The web server keeps connections; after a failover all of them are dead, and each would fail a request.
    if isinstance(connection, MySQLConnectionAbstract):
        try:
            connection.ping(reconnect=False)
        except Error as error:
            raise InvalidatePoolError from error
