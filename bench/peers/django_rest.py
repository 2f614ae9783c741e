"""Django REST framework + psycopg, as its tutorial puts them together: model, serializer, views."""

from uuid import uuid4

from django.db import models
from django.http import HttpRequest, JsonResponse
from django.urls import path
from rest_framework import generics, serializers
from rest_framework.request import Request
from rest_framework.response import Response


class Task(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    user_id = models.CharField(max_length=255, editable=False)
    title = models.CharField(max_length=500)
    description = models.TextField(max_length=5000, null=True)
    completed = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        app_label = "tasks"
        db_table = "peer_task"
        ordering = ("created_at",)


class TaskSerializer(serializers.ModelSerializer):
    class Meta:
        model = Task
        fields = (
            "id",
            "user_id",
            "title",
            "description",
            "completed",
            "created_at",
            "updated_at",
        )


class OwnTasks(generics.GenericAPIView):
    serializer_class = TaskSerializer

    def get_queryset(self):
        return Task.objects.filter(user_id=self.kwargs["user_id"])


class Tasks(OwnTasks, generics.ListCreateAPIView):
    def perform_create(self, serializer):
        serializer.save(user_id=self.kwargs["user_id"])


class TaskById(OwnTasks, generics.RetrieveUpdateDestroyAPIView):
    def put(self, request: Request, *args, **kwargs):
        return self.partial_update(request, *args, **kwargs)

    def destroy(self, request: Request, *args, **kwargs):
        self.get_object().delete()
        return Response({"message": "Task deleted successfully"})


class TaskCompletion(OwnTasks):
    def patch(self, request: Request, *args, **kwargs):
        task = self.get_object()
        task.completed = not task.completed
        task.save()
        return Response(self.get_serializer(task).data)


def health(request: HttpRequest):
    return JsonResponse({"status": "ok"})


urlpatterns = [
    path("health", health),
    path("api/<user_id>/tasks", Tasks.as_view()),
    path("api/<user_id>/tasks/<uuid:pk>", TaskById.as_view()),
    path("api/<user_id>/tasks/<uuid:pk>/complete", TaskCompletion.as_view()),
]
