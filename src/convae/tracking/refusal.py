"""How a model that MLflow serves refuses images."""

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST


class RefusedError(MlflowException):
    """Images can't be used. MLflow's server answers with status 400 and the message, which is one line.

    Example:
        >>> error = RefusedError("images[3]: not base64")
        >>> error.message = f"Failed to predict data '...'. Error: {error.message}"
        >>> error.message, error.get_http_status_code()
        ('images[3]: not base64', 400)
    """

    def __init__(self, line: str) -> None:
        self._line = line
        super().__init__(line, error_code=BAD_REQUEST)

    @property
    def message(self) -> str:
        """The line."""
        return self._line

    @message.setter
    def message(self, changed: str) -> None:
        """Keep the line: the server would put the whole request, often megabytes, in front of it."""
