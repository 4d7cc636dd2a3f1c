package grpcauthz_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/grpcauthz"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

// messages is a service: a call writes what it has in its payload into group 42.
type messages struct {
	pb.UnimplementedTestServiceServer
}

func (messages) UnaryCall(ctx context.Context, r *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	d, _ := authz.FromContext(ctx)
	fmt.Printf("%s, via %s, in %s: %s\n", d.Account, d.App, d.Domain, r.GetPayload().GetBody())
	return &pb.SimpleResponse{}, nil
}

func Example() {
	az, err := authz.New(authz.Config{
		Issuer:   "https://social.example",
		Permit:   func(context.Context, grant.Access) error { return nil },
		Apps:     []authz.App{{ID: "bookbot", Name: "BookBot", Secret: grant.NewSecret("bookbot-secret"), Actions: []string{"message.write"}}},
		Triggers: []grant.Trigger{{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, For: time.Minute, Uses: 1}},
	})
	if err != nil {
		log.Fatal(err)
	}
	g, err := grpcauthz.New(grpcauthz.Config{
		Use: az.Engine().UseFunc,
		Scope: func(_ context.Context, method string, req any) (scope.Scope, error) {
			if method == pb.TestService_UnaryCall_FullMethodName {
				return scope.New(scope.MustDomain("group:42"), "message.write")
			}
			return scope.Scope{}, fmt.Errorf("no scope for %s", method) // a method that nobody thought of is refused
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	s := grpc.NewServer(grpc.ChainUnaryInterceptor(g.Unary), grpc.ChainStreamInterceptor(g.Stream))
	pb.RegisterTestServiceServer(s, messages{})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go func() { _ = s.Serve(listener) }() // until Stop
	defer s.Stop()

	// zhang-san mentions the app, which has redeemed the code for this token.
	ctx := context.Background()
	issued, err := az.Emit(ctx, grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", Domain: scope.MustDomain("group:42"), App: "bookbot"})
	if err != nil {
		log.Fatal(err)
	}
	_, token, err := az.Engine().Redeem(ctx, "bookbot", issued[0].Code)
	if err != nil {
		log.Fatal(err)
	}
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token.Reveal())
	for _, text := range []string{"Dune is reserved.", "Buy now!"} {
		var trailer metadata.MD
		_, err = pb.NewTestServiceClient(conn).UnaryCall(ctx, &pb.SimpleRequest{Payload: &pb.Payload{Body: []byte(text)}}, grpc.Trailer(&trailer))
		fmt.Println(status.Code(err), trailer.Get("error_reason"))
	}
	// Output:
	// zhang-san, via bookbot, in group:42: Dune is reserved.
	// OK []
	// Unauthenticated [used_up]
}
