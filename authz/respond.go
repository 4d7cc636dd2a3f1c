package authz

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/behest-go/behest/grant"
)

// ErrInvalidRequest is wrapped by errors that lie in the request itself, which is answered with 400: those of
// [Clients.Authenticate], and those that a resolver of [Server.RequireFunc] returns for a request that it cannot
// read.
var ErrInvalidRequest = errors.New("authz: invalid request")

// A fault is an error that a client is told: an OAuth error code (RFC 6749 §5.2) and a text for its developer. Neither ever
// repeats what the client sent.
type fault struct {
	status            int
	code, description string
	parent            error // for errors.Is
}

func (f *fault) Error() string { return "authz: " + f.code + ": " + f.description }
func (f *fault) Unwrap() error { return f.parent }

func badRequest(description string) error {
	return &fault{http.StatusBadRequest, "invalid_request", description, ErrInvalidRequest}
}

// challenge is for client authentication (RFC 6749 §5.2, RFC 7617 §2.1).
const challenge = `Basic realm="behest", charset="UTF-8"`

// One answer for an unknown client, a wrong secret and no credentials at all: nobody learns which IDs exist.
var errClient = &fault{status: http.StatusUnauthorized, code: "invalid_client", description: "client authentication failed"}

// retryAfter is what clients are asked to wait when the store, or what the application decides, is not to be had.
const retryAfter = "1"

// writeJSON answers with v as JSON that no cache keeps (RFC 6749 §5.1).
func writeJSON(w http.ResponseWriter, status int, v any) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil { // none of ours: they are plain structs and maps
		status = http.StatusInternalServerError
		b.Reset()
		b.WriteString(`{"error":"server_error"}`)
	}
	noStore(w)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // an error means that nobody is there any more
}

func noStore(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Pragma", "no-cache")
	h.Set("X-Content-Type-Options", "nosniff")
}

// writeError answers with an OAuth error (RFC 6749 §5.2). extra are more members: name, value, name, value. A 401
// challenges for Basic unless there is a challenge already; a 503 asks to come again.
func writeError(w http.ResponseWriter, status int, code, description string, extra ...string) {
	answer := map[string]string{"error": code}
	if description != "" {
		answer["error_description"] = describable(description)
	}
	for i := 0; i+1 < len(extra); i += 2 {
		answer[extra[i]] = extra[i+1]
	}
	h := w.Header()
	switch {
	case status == http.StatusUnauthorized && h.Get("WWW-Authenticate") == "":
		h.Set("WWW-Authenticate", challenge)
	case status == http.StatusServiceUnavailable && h.Get("Retry-After") == "":
		h.Set("Retry-After", retryAfter)
	}
	writeJSON(w, status, answer)
}

// describable keeps what RFC 6749 §5.2 allows in an error_description.
func describable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '"':
			return '\''
		case r < ' ' || r > '~' || r == '\\':
			return '?'
		}
		return r
	}, s)
}

// writeFault tells the client what it may know of err, and the log the rest.
func writeFault(ctx context.Context, w http.ResponseWriter, log *slog.Logger, endpoint string, err error) {
	var f *fault
	if errors.As(err, &f) {
		writeError(w, f.status, f.code, f.description)
		return
	}
	if log != nil && !gone(ctx) {
		log.ErrorContext(ctx, "request failed", "endpoint", endpoint, "err", err)
	}
	if errors.Is(err, grant.ErrInvalid) { // a configuration that cannot work: nothing to try again
		writeError(w, http.StatusInternalServerError, "server_error", "the server is not set up for this")
		return
	}
	writeError(w, http.StatusServiceUnavailable, "temporarily_unavailable", "the server cannot decide now; try again")
}

// gone reports that the client has gone: then that is the cause, and nobody's trouble. A deadline that the host has set
// is another thing: the client is still there and gets an answer, and the log the cause.
func gone(ctx context.Context) bool { return errors.Is(ctx.Err(), context.Canceled) }

// allowed answers 405 to all methods but these.
func allowed(w http.ResponseWriter, r *http.Request, methods ...string) bool {
	for _, m := range methods {
		if r.Method == m {
			return true
		}
	}
	allow := strings.Join(methods, ", ")
	w.Header().Set("Allow", allow)
	writeError(w, http.StatusMethodNotAllowed, "invalid_request", "the method must be "+allow)
	return false
}

func clock(now func() time.Time) time.Time {
	if now == nil {
		return time.Now()
	}
	return now()
}
