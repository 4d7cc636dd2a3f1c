// Package grpcauthz guards the methods of a gRPC server with delegation tokens, as authz's Require guards handlers.
//
// The laws:
//
//  1. A method runs only after a use was spent, unless the [Config] says that it is open. It finds the Delegation with
//     [authz.FromContext], and acts as that says.
//  2. A stream spends once, when it begins, and ends with its token: no message passes after NotAfter.
//  3. A forged token reaches neither the store nor the Scope function.
//  4. The holder of a real token learns why it failed; a stranger gets one answer. Causes on this side go to the log only.
//  5. What cannot be decided lets nothing through.
//
// Format: the token is in the metadata of the call, "authorization: Bearer bhst_…", once. A refusal is a status, whose
// message is for a developer, and has in its trailer the words that HTTP has in its answer: error, error_reason and,
// where the domain or the action was wrong, scope.
//
//	Unauthenticated    no token; one that is forged or unknown; error_reason expired, used_up, revoked
//	PermissionDenied   error_reason wrong_domain, wrong_action, rights_changed
//	InvalidArgument    two tokens; what Scope says with authz.ErrInvalidRequest
//	ResourceExhausted  grant.ErrLimited
//	Unavailable        the store, or what the application decides, is not to be had: nothing was let through
//
// Use:
//
//	g, err := grpcauthz.New(grpcauthz.Config{Use: az.Engine().UseFunc, Scope: scopeOf})
//	s := grpc.NewServer(grpc.ChainUnaryInterceptor(g.Unary), grpc.ChainStreamInterceptor(g.Stream))
//	// in scopeOf: where would this call act?
//	group, err := scope.ParseDomain("group:" + req.(*pb.PostRequest).GetGroup())
//	return scope.New(group, "message.write")
//	d, _ := authz.FromContext(ctx) // in the method: d.Account, "via" d.App, in d.Domain
//
// A client that sends a call again spends again: there is no Idempotency-Key here. So give methods that spend no retry
// policy and no hedging in the service config.
package grpcauthz

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/refusals"
	"github.com/behest-go/behest/scope"
)

// Config is what a Guard needs. Use and Scope are required.
type Config struct {
	// Use verifies a token and spends a use of it for the scope that resolve returns: Engine().UseFunc of an
	// authz.Server. An authz.Remote, in another process, takes a function that calls resolve and then its Use.
	Use func(ctx context.Context, token string, resolve func() (scope.Scope, error)) (*authz.Delegation, error)
	// Scope says what a call would do, and in which domain: the real domain of the real object, never what the request
	// claims. method is the full one, "/social.Messages/Post"; req is the message of a call with one request, and nil
	// for a stream of them, which spends before it has any: go by the method and the metadata. Its errors: a status is
	// answered as it is; one that wraps authz.ErrInvalidRequest is InvalidArgument, with its text; fs.ErrNotExist is
	// NotFound; any other is Internal, and its text goes to the log.
	Scope func(ctx context.Context, method string, req any) (scope.Scope, error)
	// Open says which methods need no delegation, such as those of grpc.health.v1 and those with a guard of their own.
	// They are called without a Delegation, whatever token comes along. Nil: none is.
	Open func(method string) bool
	Now  func() time.Time // by which streams end; nil: time.Now
	Log  *slog.Logger     // causes that clients are not told; nil: nowhere
}

// A Guard has the interceptors. Make it with New. It is safe for concurrent use.
type Guard struct {
	c     Config
	fixed map[string]refusal
}

// New reports what is missing in c.
func New(c Config) (*Guard, error) {
	var faults []error
	if c.Use == nil {
		faults = append(faults, errors.New("grpcauthz: Use is required"))
	}
	if c.Scope == nil {
		faults = append(faults, errors.New("grpcauthz: Scope is required"))
	}
	if c.Open == nil {
		c.Open = func(string) bool { return false }
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	g := &Guard{c, make(map[string]refusal, len(refusals.Table))}
	for reason := range refusals.Table {
		g.fixed[reason] = answer(reason, "")
	}
	return g, errors.Join(faults...)
}

// Unary is a grpc.UnaryServerInterceptor.
func (g *Guard) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if g.c.Open(info.FullMethod) {
		return next(ctx, req)
	}
	d, no := g.use(ctx, info.FullMethod, req)
	if no.err != nil {
		if no.trailer != nil {
			_ = grpc.SetTrailer(ctx, no.trailer) // fails only where there is no call
		}
		return nil, no.err
	}
	return next(authz.NewContext(ctx, d), req)
}

// Stream is a grpc.StreamServerInterceptor. It spends one use before the stream's first message. From the end of the
// token on, its context is done and each message is refused as expired. A revocation holds from the next stream on: a
// method whose streams are long asks again, by Use, before each thing that it does.
func (g *Guard) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if g.c.Open(info.FullMethod) {
		return next(srv, ss)
	}
	d, no := g.use(ss.Context(), info.FullMethod, nil)
	if no.err != nil {
		ss.SetTrailer(no.trailer)
		return no.err
	}
	ctx, cancel := context.WithTimeout(ss.Context(), d.NotAfter.Sub(g.c.Now()))
	defer cancel()
	return next(srv, &stream{ss, authz.NewContext(ctx, d), g, d.NotAfter})
}

// A stream ends with its token.
type stream struct {
	grpc.ServerStream
	ctx      context.Context
	guard    *Guard
	notAfter time.Time
}

// Context implements grpc.ServerStream.
func (s *stream) Context() context.Context { return s.ctx }

// RecvMsg implements grpc.ServerStream.
func (s *stream) RecvMsg(m any) error {
	if err := s.over(); err != nil {
		return err
	}
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return s.over() // it may have been long in coming
}

// SendMsg implements grpc.ServerStream.
func (s *stream) SendMsg(m any) error {
	if err := s.over(); err != nil {
		return err
	}
	return s.ServerStream.SendMsg(m)
}

func (s *stream) over() error {
	if s.guard.c.Now().Before(s.notAfter) {
		return nil
	}
	no := s.guard.fixed["expired"]
	s.SetTrailer(no.trailer)
	return no.err
}

// A refusal is what a client is told.
type refusal struct {
	err     error // a status
	trailer metadata.MD
}

// answer is for a token that was taken, or for its lack.
func answer(reason, wanted string) refusal {
	same := refusals.Table[reason]
	code := codes.Unauthenticated
	if same.Status == http.StatusForbidden {
		code = codes.PermissionDenied
	}
	r := refusal{err: status.Error(code, same.Description)}
	if reason == refusals.NoToken { // as RFC 6750 §3.1 has it: no error code for a call that lacks authentication
		return r
	}
	r.trailer = metadata.Pairs("error", same.Code)
	if reason != refusals.Stranger {
		r.trailer.Set("error_reason", reason)
	}
	if wanted != "" {
		r.trailer.Set("scope", wanted)
	}
	return r
}

// said is a refusal that is no answer to a token.
func said(code codes.Code, word, message string) refusal {
	return refusal{status.Error(code, message), metadata.Pairs("error", word)}
}

// use spends, or says why not.
func (g *Guard) use(ctx context.Context, method string, req any) (*authz.Delegation, refusal) {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(values) > 1 {
		return nil, said(codes.InvalidArgument, "invalid_request", "more than one authorization")
	}
	token := ""
	if len(values) == 1 {
		// RFC 9110 §11.1: the scheme is case-insensitive.
		if s := values[0]; len(s) > 7 && strings.EqualFold(s[:7], "Bearer ") {
			token = strings.TrimLeft(s[7:], " ")
		}
	}
	if token == "" {
		return nil, g.fixed[refusals.NoToken]
	}
	var want scope.Scope
	var unresolved error
	d, err := g.c.Use(ctx, token, func() (scope.Scope, error) {
		want, unresolved = g.c.Scope(ctx, method, req)
		if unresolved == nil && want.IsZero() {
			unresolved = errors.New("neither a scope nor an error")
		}
		return want, unresolved
	})
	switch {
	case unresolved != nil:
		return nil, g.unresolved(ctx, method, unresolved)
	case err != nil:
		return nil, g.refuse(ctx, method, want, err)
	}
	return d, refusal{}
}

func (g *Guard) unresolved(ctx context.Context, method string, err error) refusal {
	if s, ok := status.FromError(err); ok && s.Code() != codes.OK {
		return refusal{err: s.Err()}
	}
	switch {
	case errors.Is(err, authz.ErrInvalidRequest):
		text := strings.TrimPrefix(strings.TrimPrefix(err.Error(), authz.ErrInvalidRequest.Error()), ": ")
		if text == "" {
			text = "the request is malformed"
		}
		return said(codes.InvalidArgument, "invalid_request", strings.ToValidUTF8(text[:min(len(text), 200)], "?"))
	case errors.Is(err, fs.ErrNotExist):
		return said(codes.NotFound, "invalid_request", "no such resource")
	}
	g.log(ctx, method, fmt.Errorf("scope: %w", err))
	return said(codes.Internal, "server_error", "the server could not decide")
}

func (g *Guard) refuse(ctx context.Context, method string, want scope.Scope, err error) refusal {
	reason := grant.Reason(err)
	switch {
	case reason == "wrong_domain", reason == "wrong_action":
		return answer(reason, want.String())
	case reason != refusals.Stranger, errors.Is(err, grant.ErrUnknown):
		return g.fixed[reason]
	case errors.Is(err, grant.ErrLimited):
		return said(codes.ResourceExhausted, "temporarily_unavailable", "too often")
	}
	g.log(ctx, method, err)
	return said(codes.Unavailable, "temporarily_unavailable", "the server could not decide")
}

// log hears of what is not the client's leaving.
func (g *Guard) log(ctx context.Context, method string, err error) {
	if !errors.Is(ctx.Err(), context.Canceled) {
		g.c.Log.ErrorContext(ctx, "require", "method", method, "err", err)
	}
}
