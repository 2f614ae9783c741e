"use strict";

// Swagger UI has a dark scheme, but does not choose it by itself.
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();

// A value in a path is filled in for all operations: the user of a token, the id of a created task.
const fillPath = ({ specActions, specSelectors }, name, value) => {
  const items = specSelectors.specJson().get("paths").valueSeq();
  const parameters = items.flatMap((item) => item.get("parameters", []));
  const parameter = parameters.find((each) => each.get("name") === name);
  specActions.changeParamByIdentity([], parameter, value); // In each place, see below.
};

// The user in a token (RFC 7519, section 4.1.2), or undefined if the token cannot be read.
const userOf = (token) => {
  try {
    const bytes = atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"));
    const text = new TextDecoder().decode(Uint8Array.from(bytes, (byte) => byte.charCodeAt(0)));
    return JSON.parse(text).sub;
  } catch {
    return undefined;
  }
};

const fillUser = (system) => {
  const user = userOf(system.authSelectors.authorized().getIn(["bearer", "value"]));
  if (user) {
    fillPath(system, "user_id", user);
  }
};

const OurForm = ({ React }) => ({
  wrapComponents: {
    // The document has the parameters of a path once for all of its methods: Swagger UI puts them last.
    parameters: (Parameters) => (props) => {
      const parameters = props.parameters.sortBy((parameter) => parameter.get("in") !== "path");
      return React.createElement(Parameters, { ...props, parameters });
    },
  },
  statePlugins: {
    auth: {
      wrapActions: {
        authorize: (authorize, system) => (payload) => {
          authorize(payload);
          fillUser(system);
        },
      },
    },
    spec: {
      wrapActions: {
        changeParamByIdentity: (change, { specSelectors }) => (place, parameter, ...value) => {
          const operations = specSelectors.operations();
          const all = operations.map((each) => [each.get("path"), each.get("method")]);
          const places = parameter.get("in") === "path" ? all : [place];
          places.forEach((each) => change(each, parameter, ...value));
        },
        setResponse: (set, system) => (path, method, response) => {
          set(path, method, response);
          if (response.status === 201) {
            fillPath(system, "task_id", response.body.id);
          }
        },
        // Swagger UI would send each default. So the description names it, and the field stays empty.
        updateJsonSpec: (update) => (document) => {
          const operations = Object.values(document.paths).flatMap(Object.values);
          for (const parameter of operations.flatMap((each) => each.parameters ?? [])) {
            if (parameter.schema?.default !== undefined) {
              parameter.description += ` Default: \`${parameter.schema.default}\`.`;
              delete parameter.schema.default;
            }
          }
          update(document);
        },
      },
    },
  },
});

// Whether the browser lets a page store data. If not, Swagger UI would throw when it stores a token.
const canStore = () => {
  try {
    return Boolean(localStorage);
  } catch {
    return false;
  }
};

const ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  onComplete: () => fillUser(ui.getSystem()),
  persistAuthorization: canStore(),
  plugins: [OurForm],
  tryItOutEnabled: true,
  validatorUrl: null,
});
