"""The model and the orders of both Django peers."""

from uuid import uuid4

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Case, F, QuerySet, Value, When
from django.db.models.functions import Lower
from django.utils import timezone


class Task(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    user_id = models.CharField(max_length=255, editable=False)
    title = models.CharField(max_length=500)
    description = models.TextField(max_length=5000, null=True)
    completed = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)
    priority = models.CharField(max_length=20, default="medium")
    due_date = models.DateField(null=True)
    tags = ArrayField(models.CharField(max_length=50), size=20, default=list, blank=True)
    completed_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        app_label = "tasks"
        db_table = "peer_task"

    def save(self, *args, **kwargs):
        self.completed_at = (self.completed_at or timezone.now()) if self.completed else None
        super().save(*args, **kwargs)


SORT_KEYS = {
    "created": F("created_at"),
    "updated": F("updated_at"),
    "title": Lower("title"),
    "due_date": F("due_date"),
    "priority": Case(
        When(priority="low", then=Value(1)),
        When(priority="high", then=Value(3)),
        When(priority="urgent", then=Value(4)),
        default=Value(2),
    ),
}


def ordered(tasks: QuerySet[Task], sort: str, order: str) -> QuerySet[Task]:
    key = SORT_KEYS[sort]
    return tasks.order_by(
        key.desc(nulls_last=True) if order == "desc" else key.asc(nulls_last=True)
    )


def without_repetitions(tags: list[str]) -> list[str]:
    return list(dict.fromkeys(filter(None, map(str.strip, tags))))
