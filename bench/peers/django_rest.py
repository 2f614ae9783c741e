"""Django REST framework + psycopg, as its tutorial puts them together: serializer and views."""

from django.db.models import Q
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django_tasks import SORT_KEYS, Task, ordered, without_repetitions
from rest_framework import generics, serializers
from rest_framework.request import Request
from rest_framework.response import Response


class TaskSerializer(serializers.ModelSerializer):
    tags = serializers.ListField(
        child=serializers.CharField(max_length=50, allow_blank=True),
        max_length=20,
        required=False,
    )

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
            "priority",
            "due_date",
            "tags",
            "completed_at",
        )

    def validate_tags(self, tags: list[str]) -> list[str]:
        return without_repetitions(tags)


class TaskQuerySerializer(serializers.Serializer):
    status = serializers.ChoiceField(("all", "pending", "completed"), required=False)
    priority = serializers.ListField(child=serializers.CharField(), required=False)
    tag = serializers.ListField(child=serializers.CharField(), required=False)
    due_date_from = serializers.DateField(required=False)
    due_date_to = serializers.DateField(required=False)
    search = serializers.CharField(max_length=200, required=False)
    sort = serializers.ChoiceField([*SORT_KEYS], default="created")
    order = serializers.ChoiceField(("asc", "desc"), default="asc")


class OwnTasks(generics.GenericAPIView):
    serializer_class = TaskSerializer

    def get_queryset(self):
        return Task.objects.filter(user_id=self.kwargs["user_id"])


class Tasks(OwnTasks, generics.ListCreateAPIView):
    def filter_queryset(self, queryset):
        serializer = TaskQuerySerializer(data=self.request.query_params)
        serializer.is_valid(raise_exception=True)
        query = serializer.validated_data
        if query.get("status", "all") != "all":
            queryset = queryset.filter(completed=query["status"] == "completed")
        if query.get("priority"):
            queryset = queryset.filter(priority__in=query["priority"])
        if query.get("tag"):
            queryset = queryset.filter(tags__contains=query["tag"])
        if "due_date_from" in query:
            queryset = queryset.filter(due_date__gte=query["due_date_from"])
        if "due_date_to" in query:
            queryset = queryset.filter(due_date__lte=query["due_date_to"])
        if "search" in query:
            words = query["search"]
            found = Q(title__icontains=words) | Q(description__icontains=words)
            queryset = queryset.filter(found)
        return ordered(queryset, query["sort"], query["order"])

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
