-- The bookshop's own tables. They live in the database that has Forebay's, because what a handler
-- writes and the record that it did are one transaction.

CREATE TABLE orders (
    message_id varchar(36) NOT NULL,  -- not unique: a second row would show that an order was handled twice
    customer varchar(200) NOT NULL,
    isbn varchar(20) NOT NULL,
    copies integer NOT NULL
);

CREATE TABLE stock (
    isbn varchar(20) PRIMARY KEY,
    copies integer NOT NULL CHECK (copies >= 0)
);

INSERT INTO stock (isbn, copies) VALUES ('9780141439518', 1000), ('9780486280615', 1000);
