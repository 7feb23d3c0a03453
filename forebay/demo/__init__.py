"""
What `forebay demo` plays, from outside: it starts the commands that users start, and sends what users send.

    load.py       orders at a constant rate, each timed from the moment when it was due
    direct.py     the endpoint that writes to the database itself, for comparison
    crew.py       the processes of a demo, and their end, however the demo ends
    servers.py    a PostgreSQL and a RabbitMQ of the demo's own
    standins.py   what dies where those are missing, or where URLs were given: files held, connections cut
    stage.py      the parts put together: who sends, who stores, what can be broken
    story.py      the phases, and what is said about each
    play.py       runs the story and watches it
    samples.py    what was seen, second by second
    screen.py     the picture in the terminal, or plain lines
    curves.py     the picture as a PNG

Nothing here imports the gateway or the consumers: they are processes like the database.
"""
