"""The Streamlit dashboard: a client of the HTTP API and the views of its records. Nothing here imports torch."""
