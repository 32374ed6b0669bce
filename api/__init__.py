"""What HTTP adds to the pipeline: access, problem answers, request ids, body limits and admission. Nothing clinical."""
