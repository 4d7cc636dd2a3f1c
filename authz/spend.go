package authz

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"time"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

// An Option changes what Require and RequireFunc do. The zero Option changes nothing.
type Option uint8

// SpendInHandler lets the handler spend the use itself, in the transaction that also holds its effect: exactly once.
//
// What needs no store is verified before the handler runs: the token is real, not expired, and covers what is asked,
// and Permit has said yes. The handler finds a Delegation that is not spent yet and calls its Spend with its
// transaction, before it does anything for the app; for an error of that, or of the transaction, it rolls back and
// calls [Refuse]. Whatever dies, effects and uses spent are as many.
//
//	d, _ := authz.FromContext(r.Context())
//	tx, err := db.BeginTx(r.Context(), nil)
//	…
//	defer tx.Rollback()
//	if err := d.Spend(r.Context(), sqlstore.Tx(tx, sqlstore.PostgreSQL)); err != nil {
//		authz.Refuse(w, r, err)
//		return
//	}
//
// To answer with a 2xx without having spent is a mistake in the handler: the client gets a 500 instead, the log says
// what to do. That is decided when the answer begins; other statuses pass. See grant.Delegation.Spend for what it
// means to try again, and for where Permit looks meanwhile.
const SpendInHandler Option = 1

func spendsInHandler(options []Option) bool {
	for _, o := range options {
		if o == SpendInHandler {
			return true
		}
	}
	return false
}

// Prepare verifies a token and spends nothing yet, for callers without HTTP that spend in a transaction of their own;
// see grant.Engine.Prepare, and Check, Spend and Once of the Delegation.
func (s *Server) Prepare(ctx context.Context, c Call) (*Delegation, error) {
	return s.engine.Prepare(ctx, c.Token, c.Want)
}

// Refuse answers for an error of a Delegation's Spend, in a handler with [SpendInHandler], as Require would have
// answered: with the status, the challenge and the error_reason of a refusal, and with the recorded answer, a 409 or a
// 422 where an Idempotency-Key was used before. It also takes an error of the transaction around it: one that is not
// behest's is a 503 that spends nothing, and its text goes to the log. Roll back first.
func Refuse(w http.ResponseWriter, r *http.Request, err error) {
	x, ok := r.Context().Value(exchangeKey{}).(*exchange)
	if !ok { // outside Require: what there is to say needs no more than the error
		v := &Verifier{}
		x = &exchange{v: v, fixed: v.fixedAnswers(), d: &Delegation{}}
		if d, ok := FromContext(r.Context()); ok {
			x.d = d
		}
	}
	x.refused = true
	x.refuse(r.Context(), w, err)
}

// An exchange is a request that takes more than one use in front of its handler: the handler spends, or the request
// has an Idempotency-Key. It is the ResponseWriter of the handler, between it and w.
type exchange struct {
	http.ResponseWriter
	v         *Verifier
	fixed     map[string]*answer
	d         *Delegation
	inHandler bool
	keyed     bool // with an Idempotency-Key: the answer is held back, until it is recorded or too large for that

	before  http.Header // what was set when the handler began
	status  int         // 0: the answer has not begun
	header  http.Header // as it was then, if keyed
	body    []byte      // of what is recorded, up to maxRecorded
	passed  bool        // the answer goes straight through: nothing is held back (any more)
	large   bool        // too large to be recorded
	taken   bool        // somebody has the connection
	refused bool        // Refuse has answered
	dropped bool        // the answer is not the handler's any more
}

// exchange lets a request pass with care. Its cost is that of what it does for it, and Require's nothing.
func (v *Verifier) exchange(w http.ResponseWriter, r *http.Request, fixed map[string]*answer, token string, inHandler bool,
	resolve func(*http.Request) (scope.Scope, error), next http.Handler) {
	x := &exchange{ResponseWriter: w, v: v, fixed: fixed, d: &Delegation{}, inHandler: inHandler}
	r = r.WithContext(r.Context()) // whose Body is ours to replace
	var key string
	var request [32]byte
	var malformed *fault
	var unresolved error
	d, err := v.prepare(w, r, token, func() (want scope.Scope, err error) {
		// Only for tokens that this server made: a stranger makes nobody read a body.
		if key, request, x.keyed, malformed = idempotency(w, r); malformed != nil {
			return want, malformed
		}
		want, unresolved = resolve(r)
		x.d.Scope = want // to be named in a refusal
		return want, unresolved
	})
	switch {
	case malformed != nil:
		writeError(w, malformed.status, malformed.code, malformed.description)
		return
	case unresolved != nil:
		v.unresolved(r.Context(), w, unresolved)
		return
	}
	if err == nil {
		x.d = d
		if x.keyed {
			err = d.Once(key, request)
		}
	}
	if err == nil {
		if inHandler {
			err = d.Check(r.Context())
		} else {
			err = x.spend(r.Context())
		}
	}
	if err != nil {
		x.refuse(r.Context(), w, err)
		return
	}
	x.serve(r, next)
}

// prepare asks for a proof where the token must be bound to a key.
func (v *Verifier) prepare(w http.ResponseWriter, r *http.Request, token string, resolve func() (scope.Scope, error)) (*Delegation, error) {
	if v.scheme != "" {
		return v.Engine.PrepareBound(r.Context(), token, v.prove(w, r, token), resolve)
	}
	return v.Engine.PrepareFunc(r.Context(), token, resolve)
}

// spend is for a request with a key. What has begun outlives a client that leaves: the write may be there already, and
// its retry would find the key in use by a request that never runs. Who has left before gets nothing.
func (x *exchange) spend(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return x.d.Spend(ctx, nil)
}

// unresolved answers for an error of a resolver.
func (v *Verifier) unresolved(ctx context.Context, w http.ResponseWriter, err error) {
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large): // RFC 9110 §15.5.14
		writeError(w, http.StatusRequestEntityTooLarge, "invalid_request", fmt.Sprintf("the body is larger than %d bytes", large.Limit))
	case errors.Is(err, ErrInvalidRequest):
		writeError(w, http.StatusBadRequest, "invalid_request", told(err))
	case errors.Is(err, fs.ErrNotExist):
		writeError(w, http.StatusNotFound, "invalid_request", "no such resource")
	default:
		v.fail(ctx, w, http.StatusInternalServerError, "server_error", err)
	}
}

func (x *exchange) refuse(ctx context.Context, w http.ResponseWriter, err error) {
	if !errors.Is(err, grant.ErrInvalid) {
		x.v.refuse(ctx, w, x.fixed, x.d.Scope, err)
		return
	}
	if state, age, answer := x.d.Repeat(); state != "" {
		err = x.v.repeat(w, state, age, answer)
	}
	if err != nil { // such as a second Spend
		x.v.fail(ctx, w, http.StatusInternalServerError, "server_error", err)
	}
}

type exchangeKey struct{}

// exchangeContext is delegationContext for an exchange.
type exchangeContext struct {
	context.Context
	x *exchange
}

func (c *exchangeContext) Value(key any) any {
	switch key.(type) {
	case delegationKey:
		return c.x.d
	case exchangeKey:
		return c.x
	}
	return c.Context.Value(key)
}

// serve runs the handler, and sees to it that what it answers is true and kept.
func (x *exchange) serve(r *http.Request, next http.Handler) {
	x.before, x.passed = x.Header().Clone(), !x.keyed
	ctx := r.Context()
	over := false
	defer func() {
		if !over { // a panic: what was begun is over, and has no answer
			x.status = 0
			x.record(ctx, nil)
		}
	}()
	next.ServeHTTP(x, r.WithContext(&exchangeContext{ctx, x}))
	// A handler that gives up when its client has gone has said nothing, which is no answer to record.
	silent := x.status == 0 && !x.taken && ctx.Err() != nil
	switch {
	case silent && !x.d.Spent(): // nor is it a mistake
		x.dropped = true
		replace(x.Header(), x.before)
		x.v.fail(ctx, x.ResponseWriter, http.StatusServiceUnavailable, "temporarily_unavailable", ctx.Err())
	case x.status == 0 && !x.taken:
		x.WriteHeader(http.StatusOK) // as net/http would
	}
	over = true
	if x.taken || x.large || silent || x.dropped || x.refused { // refused after it was spent: nobody knows of the commit
		x.record(ctx, nil)
	} else if x.keyed {
		x.record(ctx, x.recorded())
	}
	x.pass()
}

// record keeps what was answered. It outlives the client, whose retry will ask for it.
func (x *exchange) record(ctx context.Context, answer []byte) {
	if !x.keyed || !x.d.Spent() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	err := x.d.Answered(ctx, answer)
	switch {
	case err == nil:
	case errors.Is(err, grant.ErrInvalid) && x.inHandler: // its transaction was rolled back: it may be tried again
		if x.status/100 == 2 {
			x.lie(fmt.Errorf("the handler answered %d for a use that is not in the store: answer with a 2xx only after the commit, of the store's own database", x.status))
		}
	case x.v.Log != nil:
		x.v.Log.ErrorContext(ctx, "require: an answer was not recorded; retries get 409 until the token's end", "err", err)
	}
}

// lie replaces an answer that is not true, if it is not on its way yet.
func (x *exchange) lie(err error) {
	x.dropped = true
	if x.v.Log != nil {
		x.v.Log.Error("require", "status", http.StatusInternalServerError, "err", err)
	}
	if x.passed && x.status != 0 {
		return
	}
	x.status, x.passed, x.body = http.StatusInternalServerError, true, nil
	replace(x.Header(), x.before)
	writeError(x.ResponseWriter, http.StatusInternalServerError, "server_error", "the server could not decide")
}

// WriteHeader begins the answer: from here on it is what it is.
func (x *exchange) WriteHeader(status int) {
	switch {
	case x.dropped || x.status != 0 && !x.passed:
	case x.status != 0 || status < 200 && status != http.StatusSwitchingProtocols || status > 999: // to inform (RFC 9110 §15.2), or a mistake that net/http tells of
		x.ResponseWriter.WriteHeader(status)
	case x.inHandler && status/100 == 2 && !x.refused && !x.d.Spent():
		x.lie(fmt.Errorf("the handler answered %d and has not spent the use: with SpendInHandler, call Spend of the Delegation from FromContext, in the transaction of the effect, and return on its error", status))
	default:
		x.status = status
		if x.keyed {
			x.header = x.Header().Clone()
		}
		if x.passed {
			x.ResponseWriter.WriteHeader(status)
		}
	}
}

// Write holds back, if keyed, what can be recorded.
func (x *exchange) Write(b []byte) (int, error) {
	x.begin()
	if x.dropped {
		return len(b), nil
	}
	if x.keyed && !x.large {
		if x.large = len(x.body)+len(b) > maxRecorded; !x.large {
			x.body = append(x.body, b...)
			if !x.passed {
				return len(b), nil
			}
		} else {
			x.pass()
			x.body = nil
		}
	}
	return x.ResponseWriter.Write(b)
}

func (x *exchange) begin() {
	if x.status == 0 && !x.dropped {
		x.WriteHeader(http.StatusOK)
	}
}

// pass sends what was held back.
func (x *exchange) pass() {
	if x.passed || x.dropped || x.taken {
		return
	}
	x.passed = true
	now := x.Header().Clone() // trailers, and what came too late to be sent
	replace(x.Header(), x.header)
	x.ResponseWriter.WriteHeader(x.status)
	_, _ = x.ResponseWriter.Write(x.body) // an error means that nobody is there any more
	replace(x.Header(), now)
}

func replace(h, with http.Header) {
	clear(h)
	maps.Copy(h, with)
}

// Flush serves handlers that look for an http.Flusher.
func (x *exchange) Flush() { _ = x.FlushError() }

// FlushError serves http.ResponseController. What is flushed is no longer held back, and still recorded.
func (x *exchange) FlushError() error {
	if x.begin(); x.dropped {
		return nil
	}
	x.pass()
	return http.NewResponseController(x.ResponseWriter).Flush()
}

// Hijack takes the answer out of our sight: it is not recorded. A use must be spent before.
func (x *exchange) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if !x.d.Spent() {
		return nil, nil, errors.New("authz: Hijack before the Delegation's Spend")
	}
	conn, rw, err := http.NewResponseController(x.ResponseWriter).Hijack()
	x.taken = x.taken || err == nil
	return conn, rw, err
}

// Unwrap serves http.ResponseController, for all that is not the answer.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }
