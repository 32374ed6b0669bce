"""What HTTP adds to the pipeline: problem answers, request ids, body limits and admission. Nothing clinical."""
