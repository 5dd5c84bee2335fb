"""Server reflection, v1 and v1alpha, by which tools such as grpcurl learn what is served."""

from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor

from stoker.rpc.protos import reflection_v1_pb2, reflection_v1alpha_pb2
from stoker.rpc.server_call import ServerCall
from stoker.rpc.service import Service, stream_stream
from stoker.rpc.status import StatusCode

_PROTOCOLS = {
    "grpc.reflection.v1.ServerReflection": reflection_v1_pb2,
    "grpc.reflection.v1alpha.ServerReflection": reflection_v1alpha_pb2,
}


def reflection_services(names: Iterable[str]) -> list[Service]:
    """Return the reflection services of a server that serves the services called `names`.

    They list these names and their own, and describe every type that this process has loaded
    into protobuf's default pool.
    """
    listed = sorted({*names, *_PROTOCOLS})
    return [_Reflection(module, listed).service(name) for name, module in _PROTOCOLS.items()]


class _Reflection:
    """One version of the protocol; the versions differ in the names of their packages only."""

    def __init__(self, messages: ModuleType, listed: list[str]) -> None:
        self._messages: Any = messages
        self._listed = listed
        self._pool: Any = descriptor_pool.Default()
        self._answers: dict[str, Callable[[Any], dict[str, Any]]] = {
            "list_services": self._list_services,
            "file_by_filename": self._file_by_name,
            "file_containing_symbol": self._file_with_symbol,
            "file_containing_extension": self._file_with_extension,
            "all_extension_numbers_of_type": self._extension_numbers,
        }

    def service(self, name: str) -> Service:
        messages = self._messages
        method = stream_stream(
            self._reflect, messages.ServerReflectionRequest, messages.ServerReflectionResponse
        )
        return Service(name, {"ServerReflectionInfo": method})

    async def _reflect(self, call: ServerCall) -> None:
        while (request := await call.receive()) is not None:
            await call.send(self._answer(request))

    def _answer(self, request: Any) -> Any:
        question = request.WhichOneof("message_request")
        try:
            if question is None:
                content = self._error(StatusCode.INVALID_ARGUMENT, "the request asks for nothing")
            else:
                content = self._answers[question](getattr(request, question))
        except KeyError:
            content = self._error(StatusCode.NOT_FOUND, f"not found: {question}")
        return self._messages.ServerReflectionResponse(
            valid_host=request.host, original_request=request, **content
        )

    def _error(self, code: StatusCode, message: str) -> dict[str, Any]:
        error = self._messages.ErrorResponse(error_code=code, error_message=message)
        return {"error_response": error}

    def _list_services(self, _filter: str) -> dict[str, Any]:
        services = [self._messages.ServiceResponse(name=name) for name in self._listed]
        return {"list_services_response": self._messages.ListServiceResponse(service=services)}

    def _file_by_name(self, name: str) -> dict[str, Any]:
        return self._files(self._pool.FindFileByName(name))

    def _file_with_symbol(self, symbol: str) -> dict[str, Any]:
        try:
            return self._files(self._pool.FindFileContainingSymbol(symbol))
        except KeyError:
            # The pool does not count methods as symbols; the protocol does.
            return self._files(self._pool.FindMethodByName(symbol).containing_service.file)

    def _file_with_extension(self, extension: Any) -> dict[str, Any]:
        extended = self._pool.FindMessageTypeByName(extension.containing_type)
        found = self._pool.FindExtensionByNumber(extended, extension.extension_number)
        return self._files(found.file)

    def _extension_numbers(self, name: str) -> dict[str, Any]:
        extended = self._pool.FindMessageTypeByName(name)
        numbers = sorted(extension.number for extension in self._pool.FindAllExtensions(extended))
        response = self._messages.ExtensionNumberResponse(
            base_type_name=name, extension_number=numbers
        )
        return {"all_extension_numbers_response": response}

    def _files(self, file: FileDescriptor) -> dict[str, Any]:
        encoded = [needed.serialized_pb for needed in _with_dependencies(file)]
        response = self._messages.FileDescriptorResponse(file_descriptor_proto=encoded)
        return {"file_descriptor_response": response}


def _with_dependencies(file: FileDescriptor) -> Iterator[FileDescriptor]:
    """Yield `file` and all that it imports, each once."""
    found = {file.name: file}
    waiting = [file]
    while waiting:
        current = waiting.pop()
        yield current
        new = [needed for needed in current.dependencies if needed.name not in found]
        found.update((needed.name, needed) for needed in new)
        waiting.extend(new)
