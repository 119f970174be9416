"""Getting a key to its owner: mails, claim links, secrets managers."""
