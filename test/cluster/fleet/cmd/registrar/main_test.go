package main

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const endpoint = "/var/lib/kubelet/plugins/csi.example.org/csi.sock"

// start starts a registrar for a driver that listens, and returns its folder, a kubelet's client to it, and how it ends.
func start(t *testing.T) (context.CancelFunc, string, registration.RegistrationClient, <-chan error) {
	t.Helper()
	dir := t.TempDir()
	socket := filepath.Join(dir, "csi.example.org-reg.sock")
	if err := os.WriteFile(socket, nil, 0o600); err != nil { // what one that was killed leaves
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	driver := filepath.Join(dir, "csi.sock")
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, dir, driver, endpoint) }()
	listener, err := net.Listen("unix", driver)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() }) // nothing is expected of it
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // it may have ended with the registrar
	return cancel, socket, registration.NewRegistrationClient(conn), ended
}

func info(t *testing.T, kubelet registration.RegistrationClient) *registration.PluginInfo {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		got, err := kubelet.GetInfo(ctx, &registration.InfoRequest{}, grpc.WaitForReady(true))
		if err == nil {
			return got
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

func TestTheKubeletIsToldOfTheDriverUntilTheRegistrarEnds(t *testing.T) {
	end, socket, kubelet, ended := start(t)
	got := info(t, kubelet)
	if got.GetType() != registration.CSIPlugin || got.GetName() != "csi.example.org" || got.GetEndpoint() != endpoint || !slices.Equal(got.GetSupportedVersions(), []string{"1.0.0"}) {
		t.Errorf("the kubelet was told %v", got)
	}
	if _, err := kubelet.NotifyRegistrationStatus(t.Context(), &registration.RegistrationStatus{PluginRegistered: true}); err != nil {
		t.Error(err)
	}
	end()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestARegistrarEndsWhenTheKubeletRefuses(t *testing.T) {
	_, _, kubelet, ended := start(t)
	info(t, kubelet)
	if _, err := kubelet.NotifyRegistrationStatus(t.Context(), &registration.RegistrationStatus{Error: "no such version"}); err != nil {
		t.Log(err) // the server may stop before its answer is out
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "no such version") {
		t.Errorf("got %v, want the kubelet's reason", err)
	}
}

func TestARegistrarRefusesWhatItCannotServe(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct{ address, endpoint, want string }{
		"a relative path":              {"/run/csi.sock", "plugins/csi.sock", "absolute path"},
		"a driver that never listens":  {filepath.Join(t.TempDir(), "none"), endpoint, "does not answer"},
		"a folder that does not exist": {listen(t), endpoint, "no such file"},
	} {
		if err := run(ended, "/nonexistent", c.address, c.endpoint); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func listen(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() }) // nothing is expected of it
	return path
}
