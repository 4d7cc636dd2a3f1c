package app

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"time"

	"github.com/behest-go/behest/authz/webhook"
)

const (
	maxWebhook = 256 << 10
	issued     = "grant.issued"
)

// A Receiver is the [http.Handler] for the app's webhook. It verifies what arrives (package webhook), hands each
// grant to Handle, and sees that a grant that Handle took is not handed over again. Set its fields before its first
// use; do not copy it after.
//
// Its answers: 204 when Handle returned nil, for what was handled before, and for messages of types that it does not
// know; 500 when Handle returned an error, 503 while or after another try of the same message failed, both of which
// have the server try again; 401 when the signature, its time or its headers are refused; 400 when what was signed is
// no grant; 405, 413 (over 256 KiB) and 415 (not application/json). The bodies are fixed words; causes go to Log.
//
// Ids are remembered in this process: two processes behind one URL may each be handed one try of the same message.
// The code is redeemed once all the same; the other Redeem gives [ErrInvalidGrant].
type Receiver struct {
	// Keys verify: any one of them is enough, so have the old and the new one while a key rotates. Required, 1 to 16.
	Keys []webhook.Key
	// Handle takes a grant. Required. Return nil once nothing can be lost: then it is not delivered again. Its
	// context ends after Timeout, and not when the server hangs up, so that work begun is not thrown away: the
	// server's next try then finds it done. If it panics, the delivery counts as failed and the panic goes on to
	// net/http.
	Handle func(context.Context, Grant) error
	// Timeout bounds Handle's context. Zero: one minute.
	Timeout time.Duration
	// Remember bounds how many handled ids are kept, each until 10 minutes after its grant's RedeemBy and for 24
	// hours at most; beyond it the oldest is forgotten. Zero: 65536.
	Remember int
	// Log gets what was refused and why, and Handle's errors. Nil: slog.Default().
	Log *slog.Logger
	// Now is the clock. Nil: time.Now.
	Now func() time.Time

	memory memory
}

// ServeHTTP implements [http.Handler].
func (rc *Receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	log := logger(rc.Log)
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	if rc.Handle == nil {
		log.ErrorContext(r.Context(), "webhook receiver without Handle")
		http.Error(w, "not configured", http.StatusInternalServerError)
		return
	}
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" {
		http.Error(w, "want application/json", http.StatusUnsupportedMediaType)
		return
	}
	if r.ContentLength > maxWebhook {
		http.Error(w, "too large", http.StatusRequestEntityTooLarge)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxWebhook))
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			http.Error(w, "too large", http.StatusRequestEntityTooLarge)
			return
		}
		http.Error(w, "body not read", http.StatusBadRequest)
		return
	}
	id, err := webhook.Verify(r.Header, body, rc.now(), rc.Keys...)
	switch {
	case errors.Is(err, webhook.ErrRefused):
		log.WarnContext(r.Context(), "webhook refused", "err", err)
		http.Error(w, "signature refused", http.StatusUnauthorized)
		return
	case err != nil:
		log.ErrorContext(r.Context(), "webhook receiver without usable keys", "err", err)
		http.Error(w, "not configured", http.StatusInternalServerError)
		return
	}
	// From here on it is the server that speaks.
	var message struct {
		Type string          `json:"type"`
		Data json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(body, &message); err != nil || message.Type == "" {
		log.WarnContext(r.Context(), "webhook is no message", "id", id, "err", err)
		http.Error(w, "not a message", http.StatusBadRequest)
		return
	}
	if message.Type != issued {
		w.WriteHeader(http.StatusNoContent) // a server that is ahead of us need not try again
		return
	}
	var grant Grant
	err = json.Unmarshal(message.Data, &grant)
	if err == nil {
		err = grant.check()
	}
	if err != nil {
		log.WarnContext(r.Context(), "webhook is no grant", "id", id, "err", err)
		http.Error(w, "not a grant", http.StatusBadRequest)
		return
	}
	rc.once(w, r, id, grant)
}

// once has the first of several tries handle the grant; the others wait for how it ends.
func (rc *Receiver) once(w http.ResponseWriter, r *http.Request, id string, grant Grant) {
	entry, mine := rc.memory.begin(id, rc.now())
	if !mine {
		select {
		case <-entry.ended:
		case <-r.Context().Done():
		}
		if entry.finished() && entry.ok {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		retry(w, http.StatusServiceUnavailable)
		return
	}
	timeout := rc.Timeout
	if timeout <= 0 {
		timeout = time.Minute
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), timeout)
	defer cancel()
	ok := false
	defer func() { // also when Handle panics or ends the goroutine
		limit := rc.Remember
		if limit <= 0 {
			limit = defaultRemember
		}
		now := rc.now()
		rc.memory.end(entry, ok, now, rememberUntil(now, grant.RedeemBy), limit)
	}()
	if err := rc.Handle(ctx, grant); err != nil {
		logger(rc.Log).ErrorContext(ctx, "webhook not handled", "id", id, "grant", grant.ID, "err", err)
		retry(w, http.StatusInternalServerError)
		return
	}
	ok = true
	w.WriteHeader(http.StatusNoContent)
}

func retry(w http.ResponseWriter, status int) {
	w.Header().Set("Retry-After", "1")
	http.Error(w, "not handled, try again", status)
}

func (rc *Receiver) now() time.Time {
	if rc.Now != nil {
		return rc.Now()
	}
	return time.Now()
}

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.Default()
	}
	return l
}
