package grpcauthz_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/authztest"
	"github.com/behest-go/behest/authz/grpcauthz"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/stores"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// A service is one of gRPC's own for tests: the request's payload names the group, in streams the metadata does. It
// notes who has called.
type service struct {
	pb.UnimplementedTestServiceServer
	mu     sync.Mutex
	called []string
	emit   func(context.Context)
	hold   chan struct{} // if not nil: streams tell of each message that they have read
}

func (s *service) note(ctx context.Context, what string) {
	by := "nobody"
	if d, ok := authz.FromContext(ctx); ok {
		by = fmt.Sprintf("%s via %s in %s may %s", d.Account, d.App, d.Domain, d.Scope.Action())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.called = append(s.called, what+": "+by)
	if s.emit != nil {
		s.emit(ctx)
	}
}

func (s *service) taken() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	called := s.called
	s.called = nil
	return called
}

func (s *service) EmptyCall(ctx context.Context, _ *pb.Empty) (*pb.Empty, error) {
	s.note(ctx, "empty")
	return &pb.Empty{}, nil
}

func (s *service) UnaryCall(ctx context.Context, r *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	s.note(ctx, "unary")
	return &pb.SimpleResponse{Payload: r.GetPayload()}, nil
}

func (s *service) FullDuplexCall(stream pb.TestService_FullDuplexCallServer) error {
	s.note(stream.Context(), "stream")
	for {
		if _, err := stream.Recv(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if s.hold != nil {
			s.hold <- struct{}{}
			<-s.hold
		}
		if err := stream.Send(&pb.StreamingOutputCallResponse{}); err != nil {
			return err
		}
	}
}

// A world is a gRPC server beside Behest, and a client of it.
type world struct {
	t    *testing.T
	az   *authztest.Server
	svc  *service
	c    pb.TestServiceClient
	log  *bytes.Buffer
	asks atomic.Int64 // how often Scope was asked
}

var group = scope.MustDomain("group:42")

func newWorld(t *testing.T, config authz.Config, change ...func(*grpcauthz.Config)) *world {
	config.Apps = []authz.App{{ID: "bot", Actions: []string{"message.write", "message.read"}}}
	config.Triggers = []grant.Trigger{{App: "bot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, For: time.Minute, Uses: 2, Deliver: grant.Poll}}
	w := &world{t: t, az: authztest.New(t, config), svc: &service{}, log: &bytes.Buffer{}}
	c := grpcauthz.Config{Use: w.az.Engine().UseFunc, Now: w.az.Clock.Now, Log: slog.New(slog.NewTextHandler(w.log, nil)),
		Open: func(method string) bool { return method == pb.TestService_EmptyCall_FullMethodName },
		Scope: func(ctx context.Context, method string, req any) (scope.Scope, error) {
			w.asks.Add(1)
			text := ""
			if r, ok := req.(*pb.SimpleRequest); ok {
				text = string(r.GetPayload().GetBody())
			} else if values := metadata.ValueFromIncomingContext(ctx, "where"); req == nil && method == pb.TestService_FullDuplexCall_FullMethodName && len(values) == 1 {
				text = values[0]
			}
			return scope.Parse(text)
		}}
	for _, f := range change {
		f(&c)
	}
	g, err := grpcauthz.New(c)
	require.NoError(t, err)
	w.c = dial(t, w.svc, g)
	return w
}

func dial(t *testing.T, svc pb.TestServiceServer, g *grpcauthz.Guard) pb.TestServiceClient {
	t.Helper()
	s := grpc.NewServer(grpc.ChainUnaryInterceptor(g.Unary), grpc.ChainStreamInterceptor(g.Stream))
	pb.RegisterTestServiceServer(s, svc)
	listener := bufconn.Listen(1 << 20)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, conn.Close())
		s.Stop()
		<-ended
	})
	return pb.NewTestServiceClient(conn)
}

// mention gives the app a token for two uses.
func (w *world) mention(id string) string {
	w.t.Helper()
	return w.az.Redeem(w.az.MustEmit(grant.Event{ID: id, Operation: grant.Mention, Account: "zhang-san", Domain: group, App: "bot"})[0])
}

func outgoing(ctx context.Context, authorization ...string) context.Context {
	md := metadata.MD{}
	for _, a := range authorization {
		md.Append("authorization", a)
	}
	return metadata.NewOutgoingContext(ctx, md)
}

// unary calls for a scope, and returns the trailer.
func (w *world) unary(ctx context.Context, want string) (metadata.MD, error) {
	w.t.Helper()
	var trailer metadata.MD
	_, err := w.c.UnaryCall(ctx, &pb.SimpleRequest{Payload: &pb.Payload{Body: []byte(want)}}, grpc.Trailer(&trailer))
	return trailer, err
}

// stream opens one for a scope and exchanges a message.
func (w *world) stream(ctx context.Context, want string) (metadata.MD, error) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, "where", want))
	defer cancel()
	s, err := w.c.FullDuplexCall(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.Send(&pb.StreamingOutputCallRequest{}); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if _, err = s.Recv(); err == nil {
		if err = s.CloseSend(); err == nil {
			if _, err = s.Recv(); errors.Is(err, io.EOF) {
				err = nil
			}
		}
	}
	return s.Trailer(), err
}

const write = "group:42/message.write"

// Every way of calling is guarded alike.
func (w *world) each(f func(t *testing.T, call func(context.Context, string) (metadata.MD, error))) {
	w.t.Run("unary", func(t *testing.T) { f(t, w.unary) })
	w.t.Run("stream", func(t *testing.T) { f(t, w.stream) })
}

// A call spends a use and finds its Delegation; what it emits is caused by its grant.
func TestGuard(t *testing.T) {
	w := newWorld(t, authz.Config{})
	w.each(func(t *testing.T, call func(context.Context, string) (metadata.MD, error)) {
		token := w.mention(t.Name())
		for _, scheme := range []string{"Bearer ", "bearer  "} {
			_, err := call(outgoing(t.Context(), scheme+token), write)
			require.NoError(t, err)
			called := w.svc.taken()
			require.Len(t, called, 1)
			require.Contains(t, called[0], "zhang-san via bot in group:42 may message.write")
		}
		trailer, err := call(outgoing(t.Context(), "Bearer "+token), write)
		require.Equal(t, codes.Unauthenticated, status.Code(err))
		require.Equal(t, []string{"used_up"}, trailer.Get("error_reason"))
		require.Empty(t, w.svc.taken())

		// P7: what is done with a delegation triggers nothing.
		var issued []authz.Issued
		w.svc.emit = func(ctx context.Context) {
			var err error
			issued, err = w.az.Emit(ctx, grant.Event{ID: t.Name() + " by bot", Operation: grant.Mention, Account: "zhang-san", Domain: group, App: "bot"})
			require.NoError(t, err)
		}
		_, err = call(outgoing(t.Context(), "Bearer "+w.mention(t.Name()+" 2")), write)
		require.NoError(t, err)
		w.svc.emit = nil
		require.Empty(t, issued)
		w.svc.taken()
	})
}

// A method that is open is called without a Delegation, and spends nothing.
func TestOpen(t *testing.T) {
	w := newWorld(t, authz.Config{})
	token := w.mention("m1")
	for _, authorization := range [][]string{nil, {"Bearer " + token}, {"Bearer forged"}} {
		_, err := w.c.EmptyCall(outgoing(t.Context(), authorization...), &pb.Empty{})
		require.NoError(t, err)
		require.Equal(t, []string{"empty: nobody"}, w.svc.taken())
	}
	require.Zero(t, w.asks.Load())
	d, err := w.az.Engine().Inspect(t.Context(), grant.NewSecret(token))
	require.NoError(t, err)
	require.Equal(t, 2, d.Left)

	open := newWorld(t, authz.Config{}, func(c *grpcauthz.Config) { c.Open = func(string) bool { return true } })
	_, err = open.stream(t.Context(), write)
	require.NoError(t, err)
	require.Equal(t, []string{"stream: nobody"}, open.svc.taken())
	closed := newWorld(t, authz.Config{}, func(c *grpcauthz.Config) { c.Open = nil })
	_, err = closed.c.EmptyCall(t.Context(), &pb.Empty{})
	require.Equal(t, codes.Unauthenticated, status.Code(err))
}

// Strangers get one answer, and reach neither Scope nor the method.
func TestStrangers(t *testing.T) {
	w := newWorld(t, authz.Config{})
	elsewhere := newWorld(t, authz.Config{})
	code := w.az.MustEmit(grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", Domain: group, App: "bot"})[0].Code.Reveal()
	foreign := elsewhere.mention("m1")
	w.each(func(t *testing.T, call func(context.Context, string) (metadata.MD, error)) {
		for _, token := range []string{foreign, code, "bhst_" + strings.Repeat("A", 400), "made-up", "bhat_x", foreign[:50]} {
			trailer, err := call(outgoing(t.Context(), "Bearer "+token), write)
			require.Equal(t, codes.Unauthenticated, status.Code(err))
			require.Equal(t, "the token is not valid", status.Convert(err).Message())
			require.Equal(t, []string{"invalid_token"}, trailer.Get("error"))
			require.Empty(t, trailer.Get("error_reason"))
		}
		for _, authorization := range [][]string{nil, {""}, {"Bearer"}, {"Bearer "}, {"Basic " + foreign}, {foreign}} {
			trailer, err := call(outgoing(t.Context(), authorization...), write)
			require.Equal(t, codes.Unauthenticated, status.Code(err))
			require.Equal(t, "a delegation token is required", status.Convert(err).Message())
			require.Empty(t, trailer.Get("error"))
		}
		trailer, err := call(outgoing(t.Context(), "Bearer "+foreign, "Bearer "+foreign), write)
		require.Equal(t, codes.InvalidArgument, status.Code(err))
		require.Equal(t, []string{"invalid_request"}, trailer.Get("error"))
	})
	require.Zero(t, w.asks.Load())
	require.Empty(t, w.svc.taken())
	require.Empty(t, w.log.String())
}

// The holder of a real token is told the same as over HTTP, word for word.
func TestHonest(t *testing.T) {
	var mu sync.Mutex
	var denied error
	w := newWorld(t, authz.Config{Permit: func(context.Context, grant.Access) error {
		mu.Lock()
		defer mu.Unlock()
		return denied
	}})
	w.az.Handle("POST /groups/{group}/{action}", w.az.RequireFunc(func(r *http.Request) (scope.Scope, error) {
		return scope.Parse("group:" + r.PathValue("group") + "/" + r.PathValue("action"))
	})(http.NotFoundHandler()))
	permit := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		denied = err
	}
	used, expired, revoked, good := w.mention("m1"), "", w.mention("m2"), w.mention("m3")
	for range 2 {
		_, err := w.unary(outgoing(t.Context(), "Bearer "+used), write)
		require.NoError(t, err)
	}
	w.svc.taken()
	d, err := w.az.Engine().Inspect(t.Context(), grant.NewSecret(revoked))
	require.NoError(t, err)
	require.NoError(t, w.az.Engine().Revoke(t.Context(), d.Account, d.Grant))
	_, err = w.az.Engine().Inspect(t.Context(), grant.NewSecret(revoked))
	require.ErrorIs(t, err, grant.ErrRevoked)
	expired = w.mention("m4")
	check := func(token, want, reason string, code codes.Code) {
		t.Helper()
		http := w.az.Do(token, "POST", "/groups/"+strings.TrimPrefix(strings.Replace(want, "group:", "", 1), "/"), "x")
		var said map[string]string
		require.NoError(t, json.Unmarshal([]byte(http.Body), &said))
		require.Equal(t, reason, said["error_reason"])
		w.each(func(t *testing.T, call func(context.Context, string) (metadata.MD, error)) {
			trailer, err := call(outgoing(t.Context(), "Bearer "+token), want)
			require.Equal(t, code, status.Code(err))
			require.Equal(t, said["error_description"], status.Convert(err).Message())
			for _, word := range []string{"error", "error_reason", "scope"} {
				require.Equal(t, said[word], strings.Join(trailer.Get(word), ""), word)
			}
		})
	}
	check("bhst_forged", write, "", codes.Unauthenticated)
	check(used, write, "used_up", codes.Unauthenticated)
	check(revoked, write, "revoked", codes.Unauthenticated)
	check(good, "group:7/message.write", "wrong_domain", codes.PermissionDenied)
	check(good, "group:42/message.read", "wrong_action", codes.PermissionDenied)
	permit(fmt.Errorf("zhang-san has left: %w", grant.ErrDenied))
	check(good, write, "rights_changed", codes.PermissionDenied)
	permit(nil)
	w.az.Clock.Advance(time.Hour)
	check(expired, write, "expired", codes.Unauthenticated)
	require.Empty(t, w.svc.taken())
	require.Empty(t, w.log.String())
}

// What Scope says is a status that fits, and no cause is told that is not for the client.
func TestScopeFails(t *testing.T) {
	for name, c := range map[string]struct {
		err     error
		code    codes.Code
		message string
		logged  bool
	}{
		"a status":        {status.Error(codes.FailedPrecondition, "the group is closed"), codes.FailedPrecondition, "the group is closed", false},
		"invalid":         {fmt.Errorf("%w: no group", authz.ErrInvalidRequest), codes.InvalidArgument, "no group", false},
		"invalid, short":  {authz.ErrInvalidRequest, codes.InvalidArgument, "the request is malformed", false},
		"invalid, long":   {fmt.Errorf("%w: %s", authz.ErrInvalidRequest, strings.Repeat("é", 500)), codes.InvalidArgument, strings.Repeat("é", 100), false},
		"not there":       {fmt.Errorf("post 7: %w", fs.ErrNotExist), codes.NotFound, "no such resource", false},
		"anything else":   {errors.New("dial tcp 10.0.0.7:5432"), codes.Internal, "the server could not decide", true},
		"nothing at all":  {nil, codes.Internal, "the server could not decide", true},
		"an OK as a fail": {okError{}, codes.Internal, "the server could not decide", true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, authz.Config{}, func(config *grpcauthz.Config) {
				config.Scope = func(context.Context, string, any) (scope.Scope, error) { return scope.Scope{}, c.err }
			})
			token := w.mention("m1")
			w.each(func(t *testing.T, call func(context.Context, string) (metadata.MD, error)) {
				_, err := call(outgoing(t.Context(), "Bearer "+token), write)
				require.Equal(t, c.code, status.Code(err))
				require.Equal(t, c.message, status.Convert(err).Message())
			})
			require.Empty(t, w.svc.taken())
			require.Equal(t, c.logged, w.log.Len() > 0, w.log)
			require.NotContains(t, w.log.String(), token)
			d, err := w.az.Engine().Inspect(t.Context(), grant.NewSecret(token))
			require.NoError(t, err)
			require.Equal(t, 2, d.Left, "nothing was spent")
		})
	}
}

// okError is an error whose status is none.
type okError struct{}

func (okError) Error() string              { return "ok" }
func (okError) GRPCStatus() *status.Status { return status.New(codes.OK, "") }

// A store that is away, or a Permit that does not know, lets nothing through.
func TestUnavailable(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		code codes.Code
		log  bool
	}{
		"away":    {errors.New("dial tcp 10.0.0.7:5432"), codes.Unavailable, true},
		"limited": {fmt.Errorf("%w: slow down", grant.ErrLimited), codes.ResourceExhausted, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, authz.Config{}, func(config *grpcauthz.Config) {
				config.Use = func(context.Context, string, func() (scope.Scope, error)) (*authz.Delegation, error) {
					return nil, c.err
				}
			})
			w.each(func(t *testing.T, call func(context.Context, string) (metadata.MD, error)) {
				trailer, err := call(outgoing(t.Context(), "Bearer any"), write)
				require.Equal(t, c.code, status.Code(err))
				require.NotContains(t, err.Error(), "10.0.0.7")
				require.Equal(t, []string{"temporarily_unavailable"}, trailer.Get("error"))
			})
			require.Empty(t, w.svc.taken())
			require.Equal(t, c.log, w.log.Len() > 0)
		})
	}
}

// A stream spends once, however many messages it has, and none passes after the end of its token.
func TestStreamEnds(t *testing.T) {
	w := newWorld(t, authz.Config{})
	token := w.mention("m1")
	ctx := metadata.AppendToOutgoingContext(outgoing(t.Context(), "Bearer "+token), "where", write)
	s, err := w.c.FullDuplexCall(ctx)
	require.NoError(t, err)
	exchange := func() error {
		if err := s.Send(&pb.StreamingOutputCallRequest{}); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		_, err := s.Recv()
		return err
	}
	for range 5 {
		require.NoError(t, exchange())
	}
	d, err := w.az.Engine().Inspect(t.Context(), grant.NewSecret(token))
	require.NoError(t, err)
	require.Equal(t, 1, d.Left)
	w.az.Clock.Advance(time.Minute - 1)
	require.NoError(t, exchange())
	w.az.Clock.Advance(1)
	err = exchange()
	require.Equal(t, codes.Unauthenticated, status.Code(err))
	require.Equal(t, "the token has expired", status.Convert(err).Message())
	require.Equal(t, []string{"expired"}, s.Trailer().Get("error_reason"))

	// Nor is an answer sent that was asked for in time.
	w.svc.hold = make(chan struct{})
	token = w.mention("m2")
	s, err = w.c.FullDuplexCall(metadata.AppendToOutgoingContext(outgoing(t.Context(), "Bearer "+token), "where", write))
	require.NoError(t, err)
	require.NoError(t, s.Send(&pb.StreamingOutputCallRequest{}))
	<-w.svc.hold
	w.az.Clock.Advance(time.Minute)
	w.svc.hold <- struct{}{}
	_, err = s.Recv()
	require.Equal(t, codes.Unauthenticated, status.Code(err))
}

// The context of a stream is done at the end of the token.
func TestStreamDeadline(t *testing.T) {
	w := newWorld(t, authz.Config{})
	g, err := grpcauthz.New(grpcauthz.Config{Use: w.az.Engine().UseFunc, Now: w.az.Clock.Now,
		Scope: func(context.Context, string, any) (scope.Scope, error) { return scope.Parse(write) }})
	require.NoError(t, err)
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+w.mention("m1")))
	var within time.Duration
	require.NoError(t, g.Stream(nil, fakeStream{ctx: ctx}, &grpc.StreamServerInfo{FullMethod: "/x/y"}, func(_ any, ss grpc.ServerStream) error {
		deadline, ok := ss.Context().Deadline()
		require.True(t, ok)
		within = time.Until(deadline)
		return nil
	}))
	require.InDelta(t, time.Minute, within, float64(30*time.Second))
}

type fakeStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (f fakeStream) Context() context.Context { return f.ctx }

// Of 64 calls and streams for the last use of a token, one passes, on every store.
func TestLastUse(t *testing.T) {
	stores.Each(t, func(t *testing.T, m stores.Maker) {
		var st store.Store = m.New(t)()
		w := newWorld(t, authz.Config{Store: st, Key: grant.NewSecret(strings.Repeat("k", 32))})
		token := w.mention("m1")
		_, err := w.unary(outgoing(t.Context(), "Bearer "+token), write)
		require.NoError(t, err)
		var wg sync.WaitGroup
		var passed atomic.Int64
		start := make(chan struct{})
		for i := range 64 {
			wg.Go(func() {
				<-start
				call := w.unary
				if i%2 == 1 {
					call = w.stream
				}
				trailer, err := call(outgoing(t.Context(), "Bearer "+token), write)
				switch {
				case err == nil:
					passed.Add(1)
				case strings.Join(trailer.Get("error_reason"), "") != "used_up":
					t.Error(err, trailer)
				}
			})
		}
		close(start)
		wg.Wait()
		require.EqualValues(t, 1, passed.Load())
		require.Len(t, w.svc.taken(), 2)
	})
}

// New says all that is missing.
func TestNew(t *testing.T) {
	_, err := grpcauthz.New(grpcauthz.Config{})
	require.ErrorContains(t, err, "Use is required")
	require.ErrorContains(t, err, "Scope is required")
}
