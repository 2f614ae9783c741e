"""Django Ninja + psycopg, as its documentation puts them together: schemas and functions."""

from datetime import date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import orjson
from django.db.models import Q
from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from django.urls import path
from django_tasks import Task, ordered, without_repetitions
from ninja import Field, FilterLookup, FilterSchema, NinjaAPI, PatchDict, Query, Schema
from ninja.renderers import BaseRenderer
from ninja.responses import Status
from pydantic import AfterValidator, StringConstraints

Title = Annotated[str, Field(min_length=1, max_length=500)]
Priority = Annotated[str, Field(min_length=1, max_length=20)]
Tag = Annotated[str, StringConstraints(max_length=50)]
Tags = Annotated[list[Tag], Field(max_length=20), AfterValidator(without_repetitions)]


class TaskIn(Schema):
    title: Title
    description: str | None = Field(None, max_length=5000)
    completed: bool = False
    priority: Priority = "medium"
    due_date: date | None = None
    tags: Tags = Field(default_factory=list)


class TaskOut(Schema):
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


class TaskFilter(FilterSchema):
    status: Literal["all", "pending", "completed"] = "all"
    priority: Annotated[list[str] | None, FilterLookup("priority__in")] = None
    tag: Annotated[list[str] | None, FilterLookup("tags__contains")] = None
    due_date_from: Annotated[date | None, FilterLookup("due_date__gte")] = None
    due_date_to: Annotated[date | None, FilterLookup("due_date__lte")] = None
    search: Annotated[
        str | None,
        Field(max_length=200),
        FilterLookup(["title__icontains", "description__icontains"]),
    ] = None

    def filter_status(self, status: str) -> Q:
        return Q() if status == "all" else Q(completed=status == "completed")


class TaskOrder(Schema):
    sort: Literal["created", "updated", "title", "due_date", "priority"] = "created"
    order: Literal["asc", "desc"] = "asc"


class Message(Schema):
    message: str


class ORJSONRenderer(BaseRenderer):
    media_type = "application/json"

    def render(self, request: HttpRequest, data: Any, *, response_status: int) -> bytes:
        return orjson.dumps(data)


api = NinjaAPI(renderer=ORJSONRenderer())


def find(user_id: str, task_id: UUID) -> Task:
    return get_object_or_404(Task, user_id=user_id, id=task_id)


@api.get("/{user_id}/tasks", response=list[TaskOut])
def list_tasks(
    request: HttpRequest, user_id: str, filters: Query[TaskFilter], order: Query[TaskOrder]
):
    tasks = filters.filter(Task.objects.filter(user_id=user_id))
    return ordered(tasks, order.sort, order.order)


@api.post("/{user_id}/tasks", response={201: TaskOut})
def create_task(request: HttpRequest, user_id: str, body: TaskIn):
    return Status(201, Task.objects.create(user_id=user_id, **body.dict()))


@api.get("/{user_id}/tasks/{uuid:task_id}", response=TaskOut)
def get_task(request: HttpRequest, user_id: str, task_id: UUID):
    return find(user_id, task_id)


@api.put("/{user_id}/tasks/{uuid:task_id}", response=TaskOut)
def update_task(request: HttpRequest, user_id: str, task_id: UUID, body: PatchDict[TaskIn]):
    task = find(user_id, task_id)
    for name, value in body.items():
        setattr(task, name, value)
    task.save()
    return task


@api.patch("/{user_id}/tasks/{uuid:task_id}/complete", response=TaskOut)
def flip_task(request: HttpRequest, user_id: str, task_id: UUID):
    task = find(user_id, task_id)
    task.completed = not task.completed
    task.save()
    return task


@api.delete("/{user_id}/tasks/{uuid:task_id}", response=Message)
def delete_task(request: HttpRequest, user_id: str, task_id: UUID):
    find(user_id, task_id).delete()
    return {"message": "Task deleted successfully"}


@api.get("/health", include_in_schema=False)
def health(request: HttpRequest):
    return {"status": "ok"}


urlpatterns = [path("api/", api.urls), path("health", lambda request: health(request))]
