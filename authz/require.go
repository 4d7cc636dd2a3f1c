package authz

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/refusals"
	"github.com/behest-go/behest/scope"
)

// A Delegation is one use of a token: this account, through this app, in this domain. See grant.Delegation.
type Delegation = grant.Delegation

// A Call is what Use judges: a token, as the app presented it, and what the app wants to do with it. It shows no
// token in fmt, JSON and slog.
type Call struct {
	Token string `json:"-"`
	Want  scope.Scope
}

// Format prints what is wanted, whatever the verb.
func (c Call) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "call for %s", c.Want) }

// LogValue is what Format prints.
func (c Call) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(c)) }

// A Verifier guards handlers with an engine. Server has one; make your own for other arrangements.
type Verifier struct {
	Engine *grant.Engine // required
	Realm  string        // of the challenge (RFC 9110 §11.5); empty: none
	// ResourceMetadata is the URL of a ResourceMetadataEndpoint, which challenges then name (RFC 9728 §5.1). Empty: none.
	ResourceMetadata string
	// DPoP verifies the proofs that go with tokens that are bound to a key (RFC 9449). Nil: such tokens are refused.
	DPoP *DPoP
	Log  *slog.Logger // causes that clients are not told; nil: nowhere

	scheme string // of the challenges; empty: Bearer
}

// Use verifies a token and spends a use of it, for callers without HTTP; see grant.Engine.Use for its errors.
func (s *Server) Use(ctx context.Context, c Call) (*Delegation, error) {
	return s.engine.Use(ctx, c.Token, c.Want)
}

// Require guards handlers whose path names the domain: see [Verifier.Require].
func (s *Server) Require(pattern string, options ...Option) func(http.Handler) http.Handler {
	return s.verifier.Require(pattern, options...)
}

// RequireFunc guards handlers whose domain must be looked up: see [Verifier.RequireFunc].
func (s *Server) RequireFunc(resolve func(*http.Request) (scope.Scope, error), options ...Option) func(http.Handler) http.Handler {
	return s.verifier.RequireFunc(resolve, options...)
}

// Require returns middleware that lets a request pass to the handler only with a delegation token for the scope that
// the pattern makes of the request's path values, such as "group:{group}/message.write" for the route "POST
// /groups/{group}/messages". One use, or what the action costs, is spent before the handler runs, and stays spent
// whatever it does. The handler finds the Delegation with [FromContext] and acts in its Domain. With [SpendInHandler]
// it spends the use itself. A request with an Idempotency-Key is carried out once, however often it is made: see the
// package comment.
//
// What is refused never reaches the handler. The statuses are those of RFC 6750 §3.1: 401 without a token, and for
// one that is forged, expired, used up or revoked; 403 for a wrong domain or action and for rights that have changed.
// 503 when the store or Permit fail: then nothing was let through.
//
// A token that is bound to a key (RFC 9449) is taken with the scheme DPoP and a proof, and refused as Bearer; one that is
// not is refused with the scheme DPoP. A proof is taken in the write that spends.
//
// The path alone must say where: for "/posts/{id}" use RequireFunc. Routers other than http.ServeMux must set the
// path values (http.Request.SetPathValue). A value that the route does not have is a 500 at the first call, never an
// empty domain. A malformed pattern panics: it is a mistake in the program, seen at its start.
func (v *Verifier) Require(pattern string, options ...Option) func(http.Handler) http.Handler {
	p, err := scope.ParsePattern(pattern)
	if err == nil && p.Action() == "" {
		err = fmt.Errorf("%w: no action", scope.ErrSyntax)
	}
	if err != nil {
		panic(fmt.Sprintf("authz: Require(%q): %v", pattern, err))
	}
	fixed, inHandler := v.fixedAnswers(), spendsInHandler(options)
	asked, askedFixed := v.asked()
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			v, fixed := v, fixed
			token, bound, ok := v.token(w, r, fixed)
			if !ok {
				return
			}
			if bound {
				v, fixed = asked, askedFixed
			}
			missing := ""
			want, err := p.Expand(func(name string) (string, bool) {
				value := r.PathValue(name)
				if value == "" {
					missing = name
				}
				return value, value != ""
			})
			switch {
			case missing != "":
				v.fail(r.Context(), w, http.StatusInternalServerError, "server_error", fmt.Errorf("Require(%q): the route has no value for {%s}", pattern, missing))
				return
			case err != nil: // a path that names no possible domain
				writeError(w, http.StatusNotFound, "invalid_request", "no such resource")
				return
			}
			if inHandler || r.Header[idempotencyKey] != nil {
				v.exchange(w, r, fixed, token, inHandler, always(want), next)
				return
			}
			if bound {
				v.bound(w, r, fixed, token, always(want), next)
				return
			}
			d, err := v.Engine.Use(r.Context(), token, want)
			if err != nil {
				v.refuse(r.Context(), w, fixed, want, err)
				return
			}
			next.ServeHTTP(w, r.WithContext(&delegationContext{r.Context(), d}))
		})
	}
}

// RequireFunc is Require for handlers that must look up where the request would act, such as the group of the post in
// "/posts/{id}". It must return the real domain of the real object, never what the request claims. It is asked only
// about requests with a token that this server made. Its errors: one that wraps [ErrInvalidRequest] is a 400 whose
// error_description is the error's text, fs.ErrNotExist a 404, a *http.MaxBytesError a 413; any other a 500, and its
// text goes to the log.
func (v *Verifier) RequireFunc(resolve func(*http.Request) (scope.Scope, error), options ...Option) func(http.Handler) http.Handler {
	fixed, inHandler := v.fixedAnswers(), spendsInHandler(options)
	resolved := func(r *http.Request) (scope.Scope, error) {
		want, err := resolve(r)
		if err == nil && want.IsZero() {
			err = errors.New("RequireFunc: neither a scope nor an error")
		}
		return want, err
	}
	asked, askedFixed := v.asked()
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			v, fixed := v, fixed
			token, bound, ok := v.token(w, r, fixed)
			if !ok {
				return
			}
			if bound {
				v, fixed = asked, askedFixed
			}
			if inHandler || r.Header[idempotencyKey] != nil {
				v.exchange(w, r, fixed, token, inHandler, resolved, next)
				return
			}
			if bound {
				v.bound(w, r, fixed, token, resolved, next)
				return
			}
			var want scope.Scope
			var unresolved error
			d, err := v.Engine.UseFunc(r.Context(), token, func() (scope.Scope, error) {
				want, unresolved = resolved(r)
				return want, unresolved
			})
			switch {
			case unresolved != nil:
				v.unresolved(r.Context(), w, unresolved)
			case err != nil:
				v.refuse(r.Context(), w, fixed, want, err)
			default:
				next.ServeHTTP(w, r.WithContext(&delegationContext{r.Context(), d}))
			}
		})
	}
}

// always resolves to what the path has told.
func always(want scope.Scope) func(*http.Request) (scope.Scope, error) {
	return func(*http.Request) (scope.Scope, error) { return want, nil }
}

// told is what stands behind the sentinel in a resolver's error.
func told(err error) string {
	text := strings.TrimPrefix(strings.TrimPrefix(err.Error(), ErrInvalidRequest.Error()), ": ")
	if text == "" {
		return "the request is malformed"
	}
	return text[:min(len(text), 200)]
}

// token takes the token from the Authorization header (RFC 6750 §2.1), the only place where it is looked for, and says
// whether it came with the scheme DPoP (RFC 9449 §7.1).
func (v *Verifier) token(w http.ResponseWriter, r *http.Request, fixed map[string]*answer) (token string, bound, ok bool) {
	values := r.Header["Authorization"]
	if len(values) > 1 {
		writeError(w, http.StatusBadRequest, "invalid_request", "more than one Authorization header")
		return "", false, false
	}
	if len(values) == 1 {
		// RFC 9110 §11.1: the scheme is case-insensitive.
		if s := values[0]; len(s) > 7 && strings.EqualFold(s[:7], "Bearer ") {
			return strings.TrimLeft(s[7:], " "), false, true
		} else if v.DPoP != nil && len(s) > 5 && strings.EqualFold(s[:5], "DPoP ") {
			return strings.TrimLeft(s[5:], " "), true, true
		}
	}
	fixed[refusals.NoToken].write(w)
	return "", false, false
}

// bearer is token for who takes no other scheme.
func bearer(w http.ResponseWriter, r *http.Request, fixed map[string]*answer) (string, bool) {
	token, _, ok := new(Verifier).token(w, r, fixed)
	return token, ok
}

func (v *Verifier) challenge(code, description, wanted string) string {
	b, algs := []byte("Bearer"), ""
	if v.scheme != "" {
		b, algs = []byte(v.scheme), dpopAlgorithms
	}
	sep := " "
	for _, p := range [...][2]string{{"realm", v.Realm}, {"error", code}, {"error_description", description}, {"scope", wanted}, {"resource_metadata", v.ResourceMetadata}, {"algs", algs}} {
		if p[1] != "" {
			b = append(append(append(b, sep...), p[0]...), '=')
			b = strconv.AppendQuote(b, p[1])
			sep = ", "
		}
	}
	return string(b)
}

// An answer is a refusal as it goes out.
type answer struct {
	status    int
	challenge string
	body      []byte
}

func (v *Verifier) answer(reason, wanted string) *answer {
	said := refusals.Table[reason]
	body := map[string]string{"error": said.Code, "error_description": said.Description}
	challenge := v.challenge(said.Code, said.Description, wanted)
	switch reason {
	case refusals.NoToken: // RFC 6750 §3.1: no error code for a request that lacks authentication
		challenge = v.challenge("", "", "")
		delete(body, "error")
	case refusals.Stranger:
	default:
		body["error_reason"] = reason
	}
	if wanted != "" {
		body["scope"] = wanted
	}
	text, _ := json.Marshal(body) // strings
	return &answer{said.Status, challenge, append(text, '\n')}
}

// fixedAnswers are made once for each guard, because refusing must cost no more than accepting (P9).
func (v *Verifier) fixedAnswers() map[string]*answer {
	fixed := make(map[string]*answer, len(refusals.Table))
	for reason := range refusals.Table {
		fixed[reason] = v.answer(reason, "")
	}
	return fixed
}

func (a *answer) write(w http.ResponseWriter) {
	values := &[...]string{a.challenge, "application/json", "no-store", "no-cache", "nosniff"} // one allocation for all
	h := w.Header()
	for i, name := range [...]string{"Www-Authenticate", "Content-Type", "Cache-Control", "Pragma", "X-Content-Type-Options"} {
		h[name] = values[i : i+1 : i+1]
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body) // an error means that nobody is there any more
}

func (v *Verifier) refuse(ctx context.Context, w http.ResponseWriter, fixed map[string]*answer, want scope.Scope, err error) {
	reason := grant.Reason(err)
	said := fixed[reason]
	switch {
	case v.scheme != "" && v.unproved(w, err):
	case said == nil, reason == refusals.Stranger && !errors.Is(err, grant.ErrUnknown):
		v.fail(ctx, w, http.StatusServiceUnavailable, "temporarily_unavailable", err)
	case reason == "wrong_domain", reason == "wrong_action":
		v.answer(reason, want.String()).write(w)
	default:
		said.write(w)
	}
}

// fail is for faults on our side: the client learns the code, the log the cause.
func (v *Verifier) fail(ctx context.Context, w http.ResponseWriter, status int, code string, err error) {
	if v.Log != nil && !gone(ctx) {
		v.Log.ErrorContext(ctx, "require", "status", status, "err", err)
	}
	writeError(w, status, code, "the server could not decide")
}

type delegationKey struct{}

// delegationContext is a context and its value in one, which spares an allocation at each call.
type delegationContext struct {
	context.Context
	d *Delegation
}

func (c *delegationContext) Value(key any) any {
	if _, ok := key.(delegationKey); ok {
		return c.d
	}
	return c.Context.Value(key)
}

// FromContext returns the Delegation that Require has put into the request's context, or [NewContext] into a context of
// its own; false anywhere else.
func FromContext(ctx context.Context) (*Delegation, bool) {
	d, ok := ctx.Value(delegationKey{}).(*Delegation)
	return d, ok && d != nil
}

// NewContext returns a context in which FromContext finds d: for what comes by another way than HTTP and is guarded by
// [Server.Use]. Events that are emitted in it are caused by d's grant (P7). Only what Use returned belongs there.
func NewContext(ctx context.Context, d *Delegation) context.Context {
	return &delegationContext{ctx, d}
}

func joined(faults []error) error {
	if len(faults) == 1 {
		return faults[0]
	}
	return errors.Join(faults...)
}
