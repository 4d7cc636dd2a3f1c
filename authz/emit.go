package authz

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/behest-go/behest/grant"
)

// Issued is a grant that an event made.
type Issued struct {
	grant.Grant
	redirect, issuer string
}

// Link is where the user's client is to be sent for a grant that travels by Redirect: the app's redirect URI with the
// one-time code and the issuer (RFC 9207). Answer a POST with it, as a 303, and with "Referrer-Policy: no-referrer";
// never put it into a page that is cached or logged. If the event's Target is exactly one of the app's redirect URIs,
// it leads there, else to the first. Empty for other deliveries, and when no code waits.
func (i Issued) Link() string {
	if i.redirect == "" || i.Code.IsZero() {
		return ""
	}
	sep := "?"
	if strings.Contains(i.redirect, "?") { // RFC 6749 §3.1.2: the query that is there stays as it is
		sep = "&"
	}
	return i.redirect + sep + url.Values{"code": {i.Code.Reveal()}, "iss": {i.issuer}}.Encode()
}

// Emit says that operations of users happened; see grant.Engine.Emit, which it calls for each event. An event without
// By that happens in a handler behind Require was done by that delegation: it triggers nothing (P7). What was issued
// is returned also beside an error. Errors of several events are joined.
func (s *Server) Emit(ctx context.Context, events ...grant.Event) ([]Issued, error) {
	var out []Issued
	var faults []error
	for _, ev := range events {
		if d, ok := FromContext(ctx); ok && ev.By == "" {
			ev.By = d.Grant
		}
		grants, err := s.engine.Emit(ctx, ev)
		if err != nil {
			faults = append(faults, err)
		}
		for _, g := range grants {
			out = append(out, s.issued(ctx, g))
			s.wake.wake(g.App)
		}
	}
	return out, joined(faults)
}

// Decide answers for a pending grant; see grant.Engine.Decide. What it returns has its Link.
func (s *Server) Decide(ctx context.Context, account, id string, allow bool) (Issued, error) {
	g, err := s.engine.Decide(ctx, account, id, allow)
	if err != nil {
		return Issued{}, err
	}
	s.wake.wake(g.App)
	return s.issued(ctx, *g), nil
}

func (s *Server) issued(ctx context.Context, g grant.Grant) Issued {
	i := Issued{Grant: g, issuer: s.issuer}
	if g.Deliver == grant.Redirect {
		for n, uri := range s.views.latest(ctx).apps[g.App].RedirectURIs {
			if n == 0 || uri == g.Event.Target {
				i.redirect = uri
			}
		}
	}
	return i
}

// Monitor is middleware for handlers of users' operations. What a handler notes with Did is emitted after it has
// answered with a 2xx, also when the client has gone away by then, and within ten seconds. Nothing is emitted for
// GET, HEAD and OPTIONS, nor for a prefetch, which nobody meant: Did tells the handler so. Nothing either after a
// panic, or when the handler has taken the connection over. Errors go to the log: a handler that needs them, or the
// links, calls Emit.
func (s *Server) Monitor(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !deliberate(r) {
			next.ServeHTTP(w, r)
			return
		}
		notes := &notes{}
		defer notes.close() // also after a panic
		rec := &statusRecorder{ResponseWriter: w}
		next.ServeHTTP(rec, r.WithContext(context.WithValue(r.Context(), notesKey{}, notes)))
		events := notes.close()
		if len(events) == 0 || rec.status != 0 && rec.status/100 != 2 {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 10*time.Second)
		defer cancel()
		if _, err := s.Emit(ctx, events...); err != nil {
			s.log.Warn("emit", "err", err)
		}
	})
}

func deliberate(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return false
	}
	// https://wicg.github.io/nav-speculation: Sec-Purpose: prefetch;prerender. The others are its forerunners, and
	// say "preview" too.
	for _, h := range []string{"Sec-Purpose", "Purpose", "X-Purpose", "X-Moz"} {
		purpose := strings.ToLower(strings.Join(r.Header.Values(h), ","))
		if strings.Contains(purpose, "prefetch") || strings.Contains(purpose, "prerender") || strings.Contains(purpose, "preview") {
			return false
		}
	}
	return true
}

type notesKey struct{}

type notes struct {
	mu     sync.Mutex
	events []grant.Event
	closed bool
}

func (n *notes) close() []grant.Event {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	return n.events
}

// Did notes an event for the Monitor around the handler, and reports whether it will be emitted if the handler
// succeeds. It is false outside a Monitor, after the handler has returned, and for requests that nobody meant.
func Did(ctx context.Context, ev grant.Event) bool {
	n, _ := ctx.Value(notesKey{}).(*notes)
	if n == nil {
		return false
	}
	if d, ok := FromContext(ctx); ok && ev.By == "" {
		ev.By = d.Grant
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return false
	}
	n.events = append(n.events, ev)
	return true
}

// statusRecorder sees the status that the client sees. http.ResponseController finds the rest through Unwrap.
type statusRecorder struct {
	http.ResponseWriter
	status int // 0: none yet, which ends as 200
}

func (w *statusRecorder) WriteHeader(status int) {
	// The first one counts, but for those that only inform (RFC 9110 §15.2).
	if w.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusRecorder) Write(b []byte) (int, error) {
	w.ok()
	return w.ResponseWriter.Write(b)
}

// Flush serves handlers that look for an http.Flusher.
func (w *statusRecorder) Flush() { _ = w.FlushError() }

// FlushError serves http.ResponseController.
func (w *statusRecorder) FlushError() error {
	w.ok()
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Hijack takes the answer out of our sight.
func (w *statusRecorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil && w.status == 0 {
		w.status = http.StatusSwitchingProtocols
	}
	return conn, rw, err
}

func (w *statusRecorder) ok() {
	if w.status == 0 {
		w.status = http.StatusOK
	}
}

func (w *statusRecorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }
