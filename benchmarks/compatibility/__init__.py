"""Which of ART's attacks and trainers work with the HR loss, found out by running every one of them."""
