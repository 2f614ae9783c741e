"""DELETE /api/{user_id}/tasks/{task_id}"""

from support.server import User


def test_a_deleted_task_is_gone(user: User) -> None:
    task, kept = user.create("Gone"), user.create("Kept")
    response = user.delete(f"/tasks/{task['id']}")
    assert response.status_code == 200
    assert response.json() == {"message": "Task deleted successfully"}
    assert user.get(f"/tasks/{task['id']}").status_code == 404
    assert user.tasks() == [kept]


def test_a_second_delete_is_a_404(user: User) -> None:
    task = user.create()
    codes = [user.delete(f"/tasks/{task['id']}").status_code for _ in range(2)]
    assert codes == [200, 404]
