"""What makes a model's answers: the model of this process, vLLM, or an endpoint that serves one."""
