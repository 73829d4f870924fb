package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestOnlyListedCallersMayCall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "allow")
	frontend := spiffeid.RequireFromString("spiffe://keelson.demo/ns/shop/sa/frontend")
	for name, c := range map[string]struct {
		content *string
		caller  string
		want    bool
	}{
		"a listed caller":                       {new("spiffe://keelson.demo/ns/shop/sa/frontend\n"), frontend.String(), true},
		"one of two":                            {new("spiffe://x/y\nspiffe://keelson.demo/ns/shop/sa/frontend"), frontend.String(), true},
		"a caller that is not listed":           {new("spiffe://keelson.demo/ns/shop/sa/frontend\n"), "spiffe://keelson.demo/ns/shop/sa/batch", false},
		"a listed name with more behind it":     {new("spiffe://keelson.demo/ns/shop/sa/frontend\n"), frontend.String() + "2", false},
		"the same path in another trust domain": {new("spiffe://keelson.demo/ns/shop/sa/frontend\n"), "spiffe://other/ns/shop/sa/frontend", false},
		"an empty list":                         {new(""), frontend.String(), false},
		"no list":                               {nil, frontend.String(), false},
	} {
		t.Run(name, func(t *testing.T) {
			_ = os.Remove(path) // it may not be there
			if c.content != nil {
				if err := os.WriteFile(path, []byte(*c.content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			err := fromFile(path)(spiffeid.RequireFromString(c.caller), nil)
			if (err == nil) != c.want {
				t.Errorf("got %v, want let in: %t", err, c.want)
			}
		})
	}
}

func TestRefusalsAreToldApart(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"the agent has nothing for this process": {fmt.Errorf("x: %w", status.Error(codes.PermissionDenied, "no identity issued")), "no-identity"},
		"there is no agent":                      {status.Error(codes.Unavailable, "connection error"), "unavailable"},
		"the agent does not answer in time":      {context.DeadlineExceeded, "unavailable"},
		"anything else":                          {status.Error(codes.Internal, "x"), "error"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := kind(c.err); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestWithoutAnAgentThereIsNoIdentityAndNoCall(t *testing.T) {
	missing := "unix://" + filepath.Join(t.TempDir(), "api.sock")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	for name, args := range map[string][]string{
		"svid": {"svid", "-socket", missing, "-timeout", "200ms"},
		"call": {"call", "-socket", missing, "-timeout", "200ms", "-expect-id", "spiffe://x/y", "https://" + listener.Addr().String()},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if code := run(t.Context(), args, &stdout, &stderr); code != 0 {
				t.Fatalf("exit code %d: %s", code, stderr.String())
			}
			var got struct {
				OK          bool
				Kind, Error string
			}
			if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
			if got.OK || got.Kind != "unavailable" || got.Error == "" {
				t.Errorf("got %+v, want unavailable", got)
			}
		})
	}
}

func TestWrongUseIsRefused(t *testing.T) {
	for name, args := range map[string][]string{
		"no command":                   {},
		"an unknown command":           {"fetch"},
		"an unknown flag":              {"svid", "-sockets", "x"},
		"a call without a URL":         {"call", "-expect-id", "spiffe://x/y"},
		"a call to no identity at all": {"call", "https://127.0.0.1:1"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if code := run(t.Context(), args, &stdout, &stderr); code == 0 {
				t.Errorf("exit code 0, said %s", stdout.String())
			}
		})
	}
}
