import numpy as np
import torch
from sklearn.datasets import load_digits

from art_hrloss import HRClassifier, HRLoss, seeded

torch.set_num_threads(1)  # the fastest for a network this small
images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
x_train, y_train = images[:1500], labels[:1500]
x_test, y_test = images[1500:1600], labels[1500:1600]
with seeded(0):  # the same seed gives the same weights on the same kind of processor
    hidden, output = torch.nn.Linear(64, 64), torch.nn.Linear(64, 10)
    model = torch.nn.Sequential(torch.nn.Flatten(), hidden, torch.nn.ReLU(), output)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    options = {"optimizer": optimizer, "clip_values": (0, 1)}
    classifier = HRClassifier(model, HRLoss(alpha=1.6), (1, 8, 8), 10, **options)
    classifier.fit(x_train, y_train, batch_size=100, nb_epochs=20)
