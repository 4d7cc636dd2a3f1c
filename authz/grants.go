package authz

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

const (
	maxGrants = 100 // in one answer
	maxWait   = 30 * time.Second
	pollLease = 10 * time.Second
)

// A GrantsEndpoint answers GET /oauth2/grants: the grants that wait for an app, with their codes, as
// {"grants":[...]}. It is for apps that no webhook can reach, and hands out what waits to be pushed as well.
//
// The app authenticates by HTTP Basic, or with a token of client_credentials as Bearer. The one parameter is wait,
// "5s" or "5" for five seconds, 0 (the default) to 30 seconds: how long the answer is held back while there is
// nothing to tell. What was handed out is not handed out again for 10 seconds, and then again until it is redeemed or
// too late (and a code of less than 20 seconds when half of its time is over); at most 100 grants at a time. A request that is held back ends with its context: give the http.Server a
// BaseContext to end all of them before it shuts down.
//
// When the store fails the answer is 503 with Retry-After. Engine, Clients and Store are required.
type GrantsEndpoint struct {
	Engine  *grant.Engine
	Clients *Clients
	Store   store.Store // the engine's; nil: no Bearer tokens
	// Wait returns a channel that is closed when something new may be there for the app, and for how long to wait
	// before looking all the same. Nil: look every 250 ms.
	Wait func(app string) (news <-chan struct{}, look time.Duration)
	Now  func() time.Time // for Bearer tokens; nil: time.Now
	Log  *slog.Logger     // nil: nothing is logged
}

// ServeHTTP implements [http.Handler].
func (e *GrantsEndpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !allowed(w, r, http.MethodGet) {
		return
	}
	ctx := r.Context()
	app, wait, err := e.read(w, r)
	if err != nil {
		writeFault(ctx, w, e.Log, "grants", err)
		return
	}
	if wait > 0 {
		// The http.Server's WriteTimeout, if it has one, is not made for requests that wait. Not supported is no fault.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(wait + 30*time.Second))
	}
	found, err := e.await(ctx, app.ID, wait)
	if gone(ctx) {
		return // what was leased comes again
	}
	if err != nil {
		writeFault(ctx, w, e.Log, "grants", err)
		return
	}
	answer := struct {
		Grants []handover `json:"grants"`
	}{make([]handover, len(found))}
	for i := range found {
		answer.Grants[i] = *handoverOf(e.Engine, &found[i])
	}
	writeJSON(w, http.StatusOK, answer)
}

func (e *GrantsEndpoint) read(w http.ResponseWriter, r *http.Request) (*App, time.Duration, error) {
	query, err := parseForm(r.URL.RawQuery)
	if err != nil {
		return nil, 0, err
	}
	var wait time.Duration
	for name := range query {
		if name != "wait" {
			return nil, 0, badRequest("the query has the parameter wait and no other")
		}
		if wait, err = parseWait(query.Get(name)); err != nil {
			return nil, 0, err
		}
	}
	if r.ContentLength != 0 {
		return nil, 0, badRequest("the request has no body")
	}
	app, err := e.authenticate(w, r)
	return app, wait, err
}

func parseWait(text string) (time.Duration, error) {
	wait, err := time.ParseDuration(text)
	if seconds, bad := strconv.ParseUint(text, 10, 16); bad == nil {
		wait, err = time.Duration(seconds)*time.Second, nil
	}
	if err != nil || wait < 0 || wait > maxWait {
		return 0, badRequest("wait must be a duration such as 5s, or whole seconds, from 0 to 30 s")
	}
	return wait, nil
}

func (e *GrantsEndpoint) authenticate(w http.ResponseWriter, r *http.Request) (*App, error) {
	const bearer = `Bearer realm="behest"`
	header := r.Header.Values("Authorization")
	if len(header) == 1 && e.Store != nil {
		if token, ok := credentials(header[0], "Bearer"); ok {
			ti, err := (&manager{clients: e.Clients, store: e.Store, now: e.Now}).LoadAccessToken(r.Context(), token)
			switch {
			case noAccessToken(err):
				w.Header().Set("WWW-Authenticate", bearer+`, error="invalid_token"`)
				w.Header().Add("WWW-Authenticate", challenge)
				return nil, &fault{status: http.StatusUnauthorized, code: "invalid_token", description: "not a live token of client_credentials"}
			case err != nil:
				return nil, err
			}
			now, err := e.Clients.now(r.Context())
			if err != nil {
				return nil, err
			}
			if app := now.byName(ti.GetClientID()); app != nil {
				return app, nil
			}
			return nil, errClient // removed just now
		}
	}
	app, err := e.Clients.authenticate(r, nil, false)
	if errors.Is(err, errClient) {
		w.Header().Set("WWW-Authenticate", challenge)
		w.Header().Add("WWW-Authenticate", bearer)
	}
	return app, err
}

// await returns what there is, as soon as there is something.
func (e *GrantsEndpoint) await(ctx context.Context, app string, wait time.Duration) ([]grant.Grant, error) {
	over := time.NewTimer(wait)
	defer over.Stop()
	for last := wait == 0; ; {
		news, pause := (<-chan struct{})(nil), lookInterval
		if e.Wait != nil {
			news, pause = e.Wait(app) // before the look, so that nothing is missed between
		}
		found, err := e.claim(ctx, app)
		if len(found) > 0 || err != nil || last {
			return found, err
		}
		look := time.NewTimer(pause)
		select {
		case <-news:
		case <-look.C:
		case <-over.C:
			last = true
		case <-ctx.Done():
		}
		look.Stop()
		if ctx.Err() != nil { // if by the host's deadline, there is nothing until now
			return nil, nil
		}
	}
}

func (e *GrantsEndpoint) claim(ctx context.Context, app string) ([]grant.Grant, error) {
	var out []grant.Grant
	for _, by := range []grant.Delivery{grant.Poll, grant.Push} {
		if len(out) == maxGrants {
			break
		}
		found, err := e.Engine.Claim(ctx, by, app, nil, maxGrants-len(out), pollLease)
		if err != nil && len(found) == 0 {
			// A damaged record is leased now and out of the way: what still fails is the store.
			e.note(ctx, app, err)
			found, err = e.Engine.Claim(ctx, by, app, nil, maxGrants-len(out), pollLease)
		}
		out = append(out, found...)
		switch {
		case err != nil && len(out) == 0:
			return nil, err
		case err != nil:
			e.note(ctx, app, err)
		}
	}
	return out, nil
}

func (e *GrantsEndpoint) note(ctx context.Context, app string, err error) {
	if e.Log != nil && !gone(ctx) {
		e.Log.ErrorContext(ctx, "claiming grants", "app", app, "err", err)
	}
}

// A handover is a grant as an app gets it, by poll and by push: with the code, and with that app's name for the
// account. Only its JSON has the code: fmt and slog show the grant's ID.
type handover struct {
	ID       string        `json:"id"`
	Code     string        `json:"code"`
	Scope    scope.Set     `json:"scope"`
	RedeemBy time.Time     `json:"redeem_by"`
	Event    handoverEvent `json:"event"`
}

type handoverEvent struct {
	ID        string            `json:"id"`
	Operation grant.Operation   `json:"operation"`
	Account   string            `json:"account"`
	Domain    scope.Domain      `json:"domain"`
	Text      string            `json:"text,omitempty"`
	Target    string            `json:"target,omitempty"`
	Data      map[string]string `json:"data,omitempty"`
	At        time.Time         `json:"at"`
}

func handoverOf(e *grant.Engine, g *grant.Grant) *handover {
	ev := &g.Event
	return &handover{
		ID: g.ID, Code: g.Code.Reveal(), Scope: g.Scope(), RedeemBy: g.RedeemBy.UTC(),
		Event: handoverEvent{ID: ev.ID, Operation: ev.Operation, Account: e.Name(g.App, ev.Account), Domain: ev.Domain,
			Text: ev.Text, Target: ev.Target, Data: ev.Data, At: ev.At.UTC()},
	}
}

// Format implements [fmt.Formatter].
func (h handover) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "grant "+h.ID) }

// LogValue implements [slog.LogValuer].
func (h handover) LogValue() slog.Value { return slog.StringValue("grant " + h.ID) }
