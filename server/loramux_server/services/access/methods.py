"""What each method asks for. A method that is not in the table cannot be served: see :func:`require_all`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ...core.callers.principal import Scope


@dataclass(frozen=True, slots=True)
class Method:
    """What a caller needs, and what a call takes."""

    scope: Scope | None
    """None: any caller that is known."""
    generates: bool = False
    """Waits for the engine, and counts against the limit of generations."""
    audited: bool = False
    """Changes what is stored or resident, or looks into what others do, and so is in the audit log."""
    counted: bool = True
    """Whether it counts against the requests of its caller. What asks about the server itself does not."""
    follows_a_job: bool = False
    """Watches what goes on for as long as that, or the caller, likes: a server that stops does not wait for it."""


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "loramux.v1.InferenceService/Generate": Method(Scope.INFER, generates=True),
        "loramux.v1.InferenceService/GenerateOnce": Method(Scope.INFER, generates=True),
        "loramux.v1.InferenceService/Score": Method(Scope.INFER, generates=True),
        "loramux.v1.InferenceService/Embed": Method(Scope.INFER, generates=True),
        "loramux.v1.InferenceService/Tokenize": Method(Scope.INFER),
        "loramux.v1.AdapterService/ListAdapters": Method(Scope.READ_ADAPTERS),
        "loramux.v1.AdapterService/GetAdapter": Method(Scope.READ_ADAPTERS),
        "loramux.v1.AdapterService/DownloadAdapter": Method(Scope.READ_ADAPTERS),
        "loramux.v1.AdapterService/UploadAdapter": Method(Scope.WRITE_ADAPTERS, audited=True),
        "loramux.v1.AdapterService/DeleteAdapter": Method(Scope.WRITE_ADAPTERS, audited=True),
        "loramux.v1.AdapterService/SetAlias": Method(Scope.WRITE_ADAPTERS, audited=True),
        # What is pinned takes room from all tenants.
        "loramux.v1.AdapterService/PinAdapter": Method(Scope.ADMIN, audited=True),
        "loramux.v1.AdapterService/UnpinAdapter": Method(Scope.ADMIN, audited=True),
        "loramux.v1.AdapterService/ComposeAdapter": Method(Scope.WRITE_ADAPTERS, audited=True),
        "loramux.v1.AdapterService/ShareAdapter": Method(Scope.ADMIN, audited=True),
        "loramux.v1.AdapterService/UnshareAdapter": Method(Scope.ADMIN, audited=True),
        "loramux.v1.TrainingService/UploadDataset": Method(Scope.TRAIN, audited=True),
        "loramux.v1.TrainingService/ListDatasets": Method(Scope.TRAIN),
        "loramux.v1.TrainingService/DeleteDataset": Method(Scope.TRAIN, audited=True),
        "loramux.v1.TrainingService/ValidateDataset": Method(Scope.TRAIN),
        "loramux.v1.TrainingService/CreateJob": Method(Scope.TRAIN, audited=True),
        "loramux.v1.TrainingService/GetJob": Method(Scope.TRAIN),
        "loramux.v1.TrainingService/ListJobs": Method(Scope.TRAIN),
        "loramux.v1.TrainingService/CancelJob": Method(Scope.TRAIN, audited=True),
        "loramux.v1.TrainingService/PauseJob": Method(Scope.TRAIN, audited=True),
        "loramux.v1.TrainingService/ResumeJob": Method(Scope.TRAIN, audited=True),
        "loramux.v1.TrainingService/WatchJob": Method(Scope.TRAIN, follows_a_job=True),
        "loramux.v1.ServerService/GetServerInfo": Method(None, counted=False),
        "loramux.v1.ServerService/GetStats": Method(None, counted=False),
        # Of the caller's tenant; the service asks for the scope admin beyond that.
        "loramux.v1.UsageService/GetUsage": Method(None),
        # It shows what all tenants do, and slows them down a little.
        "loramux.v1.ServerService/ProfileEngine": Method(Scope.ADMIN, audited=True, follows_a_job=True),
        "loramux.v1.ServerService/ListReplicas": Method(Scope.ADMIN),
        "loramux.v1.ServerService/DrainReplica": Method(Scope.ADMIN, audited=True),
        "openai.v1/createChatCompletion": Method(Scope.INFER, generates=True),
        "openai.v1/createCompletion": Method(Scope.INFER, generates=True),
        "openai.v1/createResponse": Method(Scope.INFER, generates=True),
        "openai.v1/countInputTokens": Method(Scope.INFER),
        "openai.v1/compactConversation": Method(Scope.INFER),
        "openai.v1/getResponse": Method(Scope.INFER),
        "openai.v1/deleteResponse": Method(Scope.INFER),
        "openai.v1/cancelResponse": Method(Scope.INFER),
        "openai.v1/listInputItems": Method(Scope.INFER),
        "openai.v1/createEmbedding": Method(Scope.INFER, generates=True),
        "anthropic.v1/createMessage": Method(Scope.INFER, generates=True),
        "anthropic.v1/countMessageTokens": Method(Scope.INFER),
        "openai.v1/listLoraAdapters": Method(Scope.INFER),
        "openai.v1/usage-completions": Method(None),
        "openai.v1/usage-embeddings": Method(None),
        "openai.v1/listModels": Method(Scope.INFER),
        "openai.v1/retrieveModel": Method(Scope.INFER),
        "openai.v1/deleteModel": Method(Scope.WRITE_ADAPTERS, audited=True),
        # Folders of the server's machine are the operator's.
        "openai.v1/loadLoraAdapter": Method(Scope.ADMIN, audited=True),
        "openai.v1/unloadLoraAdapter": Method(Scope.ADMIN, audited=True),
        "openai.v1/createFile": Method(Scope.TRAIN, audited=True),
        "openai.v1/listFiles": Method(Scope.TRAIN),
        "openai.v1/retrieveFile": Method(Scope.TRAIN),
        "openai.v1/deleteFile": Method(Scope.TRAIN, audited=True),
        "openai.v1/downloadFile": Method(Scope.TRAIN),
        "openai.v1/createUpload": Method(Scope.TRAIN, audited=True),
        "openai.v1/addUploadPart": Method(Scope.TRAIN, audited=True),
        "openai.v1/completeUpload": Method(Scope.TRAIN, audited=True),
        "openai.v1/cancelUpload": Method(Scope.TRAIN, audited=True),
        "openai.v1/createFineTuningJob": Method(Scope.TRAIN, audited=True),
        "openai.v1/listPaginatedFineTuningJobs": Method(Scope.TRAIN),
        "openai.v1/retrieveFineTuningJob": Method(Scope.TRAIN),
        "openai.v1/listFineTuningEvents": Method(Scope.TRAIN, follows_a_job=True),
        "openai.v1/listFineTuningJobCheckpoints": Method(Scope.TRAIN),
        "openai.v1/cancelFineTuningJob": Method(Scope.TRAIN, audited=True),
        "openai.v1/pauseFineTuningJob": Method(Scope.TRAIN, audited=True),
        "openai.v1/resumeFineTuningJob": Method(Scope.TRAIN, audited=True),
    }
)
"""By full name, ``package.Service/Method``, the same for all doors."""


def short_name(method: str) -> str:
    """A method's name without its service, as metrics and messages have it."""
    return method.rpartition("/")[2]


def require_all(methods: Iterable[str]) -> None:
    """Raise ``LookupError`` naming the methods that a door has and the table has not."""
    if missing := sorted(set(methods) - METHODS.keys()):
        raise LookupError(f"no scope is set for {', '.join(missing)}: add them to services/access/methods.py")
