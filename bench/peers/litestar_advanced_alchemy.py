"""Litestar + Advanced Alchemy + asyncpg, as their documentation puts them together.

A service on top of a repository, a controller, and structs for what comes in and what goes out.
"""

import os
from datetime import UTC, date, datetime
from typing import Annotated, Literal
from uuid import UUID, uuid4

from advanced_alchemy.extensions.litestar import (
    AsyncSessionConfig,
    EngineConfig,
    SQLAlchemyAsyncConfig,
    SQLAlchemyPlugin,
    base,
    filters,
    mixins,
    providers,
    repository,
    service,
)
from litestar import Controller, Litestar, delete, get, patch, post, put
from litestar.di import NamedDependency, Provide
from litestar.params import Parameter, SkipValidation
from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import asdict
from sqlalchemy import ColumnElement, String, case, func
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column


# `base.UUIDAuditBase` would add a column that only matters when many rows are inserted at once.
class Task(mixins.AuditColumns, base.DefaultBase):
    __tablename__ = "peer_task"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    user_id: Mapped[str] = mapped_column(index=True)
    title: Mapped[str]
    description: Mapped[str | None]
    completed: Mapped[bool] = mapped_column(default=False)
    priority: Mapped[str] = mapped_column(default="medium")
    due_date: Mapped[date | None]
    tags: Mapped[list[str]] = mapped_column(ARRAY(String(50)), default=list)
    completed_at: Mapped[datetime | None]


class TaskOut(Struct):
    id: UUID
    user_id: str
    title: str
    description: str | None
    completed: bool
    created_at: datetime
    updated_at: datetime
    priority: str
    due_date: date | None
    tags: list[str]
    completed_at: datetime | None


Title = Annotated[str, Meta(min_length=1, max_length=500)]
Description = Annotated[str, Meta(max_length=5000)]
Priority = Annotated[str, Meta(min_length=1, max_length=20)]
Tags = Annotated[list[Annotated[str, Meta(max_length=50)]], Meta(max_length=20)]


def without_repetitions(tags: list[str]) -> list[str]:
    return list(dict.fromkeys(filter(None, map(str.strip, tags))))


class TaskCreate(Struct):
    title: Title
    description: Description | None = None
    completed: bool = False
    priority: Priority = "medium"
    due_date: date | None = None
    tags: Tags = []

    def __post_init__(self) -> None:
        self.tags = without_repetitions(self.tags)


class TaskUpdate(Struct):
    title: Title | UnsetType = UNSET
    description: Description | UnsetType | None = UNSET
    completed: bool | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET
    due_date: date | UnsetType | None = UNSET
    tags: Tags | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.tags is not UNSET:
            self.tags = without_repetitions(self.tags)


class TaskService(service.SQLAlchemyAsyncRepositoryService[Task]):
    class Repository(repository.SQLAlchemyAsyncRepository[Task]):
        model_type = Task

    repository_type = Repository

    async def save(self, task: Task) -> TaskOut:
        """Send the changes of a task that was read before: `update` would read it again."""
        now = datetime.now(UTC)
        task.updated_at = now
        task.completed_at = (task.completed_at or now) if task.completed else None
        await self.repository.session.flush()
        return self.to_schema(task, schema_type=TaskOut)


SORT_KEYS = {
    "created": Task.created_at,
    "updated": Task.updated_at,
    "title": func.lower(Task.title),
    "due_date": Task.due_date,
    "priority": case({"low": 1, "high": 3, "urgent": 4}, value=Task.priority, else_=2),
}
Conditions = list[filters.StatementFilter | ColumnElement[bool]]


async def provide_conditions(
    status: Literal["all", "pending", "completed"] = "all",
    priority: list[str] | None = None,
    tag: list[str] | None = None,
    due_date_from: date | None = None,
    due_date_to: date | None = None,
    search: Annotated[str, Parameter(max_length=200)] = "",
    sort: Literal["created", "updated", "title", "due_date", "priority"] = "created",
    order: Literal["asc", "desc"] = "asc",
) -> Conditions:
    conditions: Conditions = [filters.OrderBy(SORT_KEYS[sort], order, nulls="last")]
    if status != "all":
        conditions.append(Task.completed == (status == "completed"))
    if priority:
        conditions.append(filters.CollectionFilter("priority", priority))
    if tag:
        conditions.append(Task.tags.contains(tag))
    if due_date_from:
        conditions.append(Task.due_date >= due_date_from)
    if due_date_to:
        conditions.append(Task.due_date <= due_date_to)
    if search:
        fields = {"title", "description"}
        conditions.append(
            filters.SearchFilter(fields, search, ignore_case=True, escape_wildcards=True)
        )
    return conditions


class Tasks(Controller):
    path = "/api/{user_id:str}/tasks"
    dependencies = providers.create_service_dependencies(TaskService, "tasks")

    @get(dependencies={"conditions": Provide(provide_conditions)})
    async def list_tasks(
        self,
        tasks: NamedDependency[TaskService],
        user_id: str,
        conditions: NamedDependency[SkipValidation[Conditions]],
    ) -> list[TaskOut]:
        found = await tasks.get_many(*conditions, user_id=user_id)
        return tasks.to_schema(found, schema_type=TaskOut).items

    @post()
    async def create_task(
        self, tasks: NamedDependency[TaskService], user_id: str, data: TaskCreate
    ) -> TaskOut:
        completed_at = datetime.now(UTC) if data.completed else None
        task = asdict(data) | {"user_id": user_id, "completed_at": completed_at}
        return tasks.to_schema(await tasks.create(task), schema_type=TaskOut)

    @get("/{task_id:uuid}")
    async def get_task(
        self, tasks: NamedDependency[TaskService], user_id: str, task_id: UUID
    ) -> TaskOut:
        task = await tasks.get_one(id=task_id, user_id=user_id)
        return tasks.to_schema(task, schema_type=TaskOut)

    @put("/{task_id:uuid}")
    async def update_task(
        self, tasks: NamedDependency[TaskService], user_id: str, task_id: UUID, data: TaskUpdate
    ) -> TaskOut:
        task = await tasks.get_one(id=task_id, user_id=user_id)
        for name, value in asdict(data).items():
            if value is not UNSET:
                setattr(task, name, value)
        return await tasks.save(task)

    @patch("/{task_id:uuid}/complete")
    async def flip_task(
        self, tasks: NamedDependency[TaskService], user_id: str, task_id: UUID
    ) -> TaskOut:
        task = await tasks.get_one(id=task_id, user_id=user_id)
        task.completed = not task.completed
        return await tasks.save(task)

    @delete("/{task_id:uuid}", status_code=200)
    async def delete_task(
        self, tasks: NamedDependency[TaskService], user_id: str, task_id: UUID
    ) -> dict[str, str]:
        task = await tasks.get_one(id=task_id, user_id=user_id)
        await tasks.repository.session.delete(task)
        return {"message": "Task deleted successfully"}


@get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}


alchemy = SQLAlchemyAsyncConfig(
    connection_string=os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+asyncpg:"),
    before_send_handler="autocommit",
    session_config=AsyncSessionConfig(expire_on_commit=False),
    # By default it keeps five connections, and opens and closes the others with every request.
    engine_config=EngineConfig(pool_size=20),
)
app = Litestar([Tasks, health], plugins=[SQLAlchemyPlugin(alchemy)])
