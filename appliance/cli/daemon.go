package cli

import (
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"weft.network/weft/appliance"
	"weft.network/weft/appliance/config"
)

const defaultConfig = "/etc/weft/weft.yaml"

func daemonCommand() *cli.Command {
	d := config.Default()
	return &cli.Command{
		Name:  "weftd",
		Usage: "run the node daemon (also by calling the binary weftd)",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Value: defaultConfig, Usage: "settings of this node, YAML `FILE`; flags win over it"},
			&cli.StringFlag{Name: "node-name", Usage: "`NAME` of this node in the cluster", DefaultText: "hostname", EnvVars: []string{"NODE_NAME"}},
			&cli.StringFlag{Name: "roles", Usage: "comma-separated `LIST` of parts to run", DefaultText: roleList(d.Roles)},
			&cli.StringFlag{Name: "kubeconfig", Usage: "`FILE` that names the API server", DefaultText: "in-cluster credentials"},
			&cli.StringSliceFlag{Name: "api-server", Usage: "`URL` to reach the API server at, instead of the one in the kubeconfig; may be repeated"},
			&cli.StringFlag{Name: "manifests", Usage: "read the cluster's objects from the YAML and JSON files in `DIR` instead of an API server"},
			&cli.StringFlag{Name: "state-dir", Usage: "`DIR` of the store", DefaultText: d.StateDir},
			&cli.StringFlag{Name: "run-dir", Usage: "`DIR` of the control socket", DefaultText: d.RunDir},
			&cli.StringFlag{Name: "cni-conf-dir", Usage: "`DIR` where the runtime looks for network configurations", DefaultText: d.CNIConfDir},
			&cli.StringFlag{Name: "cni-bin-dir", Usage: "`DIR` where the runtime looks for CNI plugins", DefaultText: d.CNIBinDir},
			&cli.StringFlag{Name: "listen", Usage: "`ADDRESS` for metrics, /healthz and /readyz; empty for none", DefaultText: d.Listen},
			&cli.BoolFlag{Name: "pprof", Usage: "serve Go profiles on the listen address"},
			&cli.StringFlag{Name: "log-level", Usage: "debug, info, warn or error", DefaultText: d.Log.Level},
			&cli.StringFlag{Name: "log-format", Usage: "json, console, or auto (console on a terminal)", DefaultText: d.Log.Format},
		},
		OnUsageError: usageError,
		Before:       noArguments,
		Action: func(c *cli.Context) error {
			cfg, err := daemonConfig(c)
			if err != nil {
				return cli.Exit(err, 2)
			}
			log, err := newLogger(cfg.Log)
			if err != nil {
				return err
			}
			defer func() { _ = log.Sync() }()
			return appliance.Run(c.Context, func() (config.Config, error) { return daemonConfig(c) }, c.App.Version, log)
		},
	}
}

func roleList(roles []config.Role) string {
	parts := make([]string, len(roles))
	for i, r := range roles {
		parts[i] = string(r)
	}
	return strings.Join(parts, ",")
}

// daemonConfig reads the file and lays the flags over it. The default file may be missing; one that was named may not.
func daemonConfig(c *cli.Context) (config.Config, error) {
	cfg, err := config.Load(c.String("config"), c.IsSet("config"))
	if err != nil {
		return cfg, err
	}
	for flag, field := range map[string]*string{
		"node-name": &cfg.NodeName, "kubeconfig": &cfg.Kubeconfig, "manifests": &cfg.Manifests, "state-dir": &cfg.StateDir,
		"run-dir": &cfg.RunDir, "cni-conf-dir": &cfg.CNIConfDir, "cni-bin-dir": &cfg.CNIBinDir, "listen": &cfg.Listen,
		"log-level": &cfg.Log.Level, "log-format": &cfg.Log.Format,
	} {
		if c.IsSet(flag) {
			*field = c.String(flag)
		}
	}
	if c.IsSet("api-server") {
		cfg.APIServers = c.StringSlice("api-server")
	}
	if c.IsSet("pprof") {
		cfg.Pprof = c.Bool("pprof")
	}
	if c.IsSet("roles") {
		cfg.Roles = nil
		for _, r := range strings.Split(c.String("roles"), ",") {
			cfg.Roles = append(cfg.Roles, config.Role(strings.TrimSpace(r)))
		}
	}
	return cfg, cfg.Validate()
}

// newLogger writes to standard error: lines for people on a terminal, JSON for machines elsewhere.
func newLogger(l config.Log) (*zap.Logger, error) {
	level, err := zapcore.ParseLevel(l.Level)
	if err != nil {
		return nil, fmt.Errorf("log.level: %w", err)
	}
	zc := zap.NewProductionConfig()
	zc.Level = zap.NewAtomicLevelAt(level)
	zc.EncoderConfig.EncodeTime = zapcore.ISO8601TimeEncoder
	zc.EncoderConfig.EncodeDuration = zapcore.StringDurationEncoder
	zc.DisableStacktrace, zc.DisableCaller = true, true
	if l.Format == "console" || l.Format == "auto" && isTerminal(os.Stderr) {
		zc.Encoding = "console"
		zc.EncoderConfig.EncodeLevel = zapcore.CapitalLevelEncoder
	}
	return zc.Build()
}
