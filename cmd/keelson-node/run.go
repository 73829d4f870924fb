package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/keelson-project/keelson/policy-sync/conntrack"
	"github.com/keelson-project/keelson/policy-sync/cutter"
	"github.com/keelson-project/keelson/policy-sync/revocations"
)

// run wires the parts together and runs them until ctx ends. A kernel that does not let it at the table ends it at once: nothing
// but another configuration of the container or of the machine helps.
func run(ctx context.Context, o options, log *slog.Logger) error {
	if err := (conntrack.Table{}).Check(); err != nil {
		return err
	}
	config, err := restConfig(o.kubeconfig)
	if err != nil {
		return err
	}
	quiet := slog.DiscardHandler // client-go says of its own accord what the cutter says once
	if log.Enabled(ctx, slog.LevelDebug) {
		quiet = log.Handler()
	}
	klog.SetSlogLogger(slog.New(quiet))
	registry := prometheus.NewRegistry()
	metrics, err := cutter.NewMetrics(registry)
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	if err := errors.Join(registry.Register(collectors.NewGoCollector()), registry.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	c := cutter.New(cutter.Options{Node: o.node, Table: conntrack.Table{}, Local: conntrack.Local, Log: log, Metrics: metrics, Now: time.Now})
	group, ctx := errgroup.WithContext(ctx)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	if err := errors.Join(serve(ctx, group, o.health, c.Handler()), serve(ctx, group, o.metrics, mux)); err != nil {
		return err
	}
	group.Go(func() error { return c.Run(ctx) })
	group.Go(func() error {
		return revocations.Watch(ctx, revocations.Options{Config: config, Node: o.node, Update: c.Update, Log: log})
	})
	log.Info("cutting open flows of revoked addresses", "node", o.node, "health", o.health, "metrics", o.metrics)
	return group.Wait()
}

func restConfig(kubeconfig string) (*rest.Config, error) {
	config, err := rest.InClusterConfig()
	if kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	config.QPS = -1 // the API server's priority and fairness is the limit: a client-side one would delay a revocation
	config.UserAgent = "keelson-node"
	return config, nil
}

// serve listens on an address and serves until ctx ends.
func serve(ctx context.Context, group *errgroup.Group, address string, handler http.Handler) error {
	if address == off {
		return nil
	}
	var listen net.ListenConfig
	l, err := listen.Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{Handler: handler, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	context.AfterFunc(ctx, func() { _ = server.Close() }) // probes and scrapes need no farewell
	group.Go(func() error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve %s: %w", address, err)
		}
		return nil
	})
	return nil
}
